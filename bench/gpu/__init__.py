"""What runs on a GPU machine: measurements, and the folder of models and texts they need."""
