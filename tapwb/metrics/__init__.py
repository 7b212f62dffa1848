"""Numbers from runs, each with its source, its n and its interval.

``quality`` (perplexity, KL divergence, agreement), ``statistics`` (bootstrap, permutation, order statistics),
``adaptivity`` (does choosing tokens pay?), ``effective_bits``, ``speed``, ``memory``, ``energy``, ``report``.
Import from the module: ``quality`` needs torch, the others only numpy.
"""
