"""Reports: a notebook or a saved run as one file that opens anywhere, offline, with its provenance inside.

The way there, one module per step: ``source`` (percent script -> notebook) or ``saved_run`` (run -> notebook),
``execute`` (papermill), ``figures`` (plotly -> static SVG), ``html`` (nbconvert), ``pdf`` (a browser prints it), and
``build``, which does them in order.
"""
