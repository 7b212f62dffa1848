"""One query of each sequence over packed pages: ``pages`` is the format, ``reference`` the specification."""
