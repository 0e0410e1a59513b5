"""The ops in PyTorch: the oracle in tests, and what runs on a CPU."""
