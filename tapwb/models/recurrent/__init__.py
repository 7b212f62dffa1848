"""Recurrences of models without attention: one token at a time, many tokens at once, and the fp64 specification."""
