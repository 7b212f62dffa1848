"""Packed nested weights to floats: ``reference`` specifies, ``blocked`` is fast on a CPU, ``triton`` on a GPU."""
