"""Scores of an answer against a reference that need no model: exact match, token F1, ROUGE-L, chrF.

``normalise`` says what is made alike before comparing, ``tokens`` what a word is in scripts that write none.
"""
