"""The ops in PyTorch. Tests compare the kernels with them, and they run on a CPU."""
