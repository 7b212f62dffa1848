"""RMS norm, 8-bit codes of each row and its outlier score in one pass: ``reference`` specifies, ``triton`` is fast."""
