"""Compute kernels of TAP Workbench: packed formats, reference implementations, and faster ones that agree with them.

Each operation is a folder with ``reference.py`` (the specification, read it first) and the faster variants beside it.
The package knows nothing of the workbench and can be used alone. ``layout`` is the format contract, ``capability`` says
what the present device can run.
"""
