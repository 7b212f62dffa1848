"""A whole decode step as a list of operations, run by one native call."""
