"""The command line: one command per file, each a thin caller of the layers below that prints what they return."""
