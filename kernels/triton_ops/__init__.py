"""Triton kernels, one file an op, installed as `audiogen_fast.kernels`.

Importing this package imports no triton; importing one of its modules does. A launch needs a GPU
(or `TRITON_INTERPRET=1` set before triton is imported).
"""
