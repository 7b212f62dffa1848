"""Activations times a nested weight, each row at its own level: ``reference`` specifies, ``grouped`` is fast."""
