"""Measures the HTTP server under load, beside Hugging Face's pipeline behind the same server."""
