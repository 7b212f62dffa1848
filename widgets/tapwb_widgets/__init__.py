"""Browser widgets: one ES module each, with a notebook class, a dashboard class and a static form.

See ``README.md`` beside this package. Importing this package imports neither anywidget nor Panel.
"""
