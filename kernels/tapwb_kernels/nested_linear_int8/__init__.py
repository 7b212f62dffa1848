"""Integer activations times the integer codes of a nested weight: ``reference`` specifies, ``grouped`` is faster."""
