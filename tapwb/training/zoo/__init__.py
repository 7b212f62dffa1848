"""Training of the small models in ``data/models``: their text, the loop, and the folder with its card.

A new model is one row of :mod:`tapwb.models.zoo`; nothing here knows an architecture.
"""
