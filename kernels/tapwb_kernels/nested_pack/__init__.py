"""Codes to packed planes and back: ``reference`` specifies, ``triton`` is fast on a GPU."""
