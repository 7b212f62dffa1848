"""The dashboard: a shell that every page shares, and one file per page."""
