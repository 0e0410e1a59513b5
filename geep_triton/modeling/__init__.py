"""The model: Hugging Face's BERT with exit heads."""
