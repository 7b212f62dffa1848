"""Small things that are trained here, from a user's own text."""
