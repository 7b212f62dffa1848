"""``python -m tapwb`` is the command line."""

from tapwb.views.cli.main import main

main()
