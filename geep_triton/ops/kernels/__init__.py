"""The ops as Triton kernels. Each file has the kernels of one op and their launcher."""
