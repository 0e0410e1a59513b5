"""The ops as Triton kernels, one file an op: the kernel, then its launcher."""
