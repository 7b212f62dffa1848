"""The pages: one file each, with a class that takes a scope and offers ``view``."""
