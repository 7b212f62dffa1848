"""Show, and compute nothing: command line, dashboard, notebooks, reports."""
