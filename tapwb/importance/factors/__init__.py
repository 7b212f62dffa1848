"""One file per signal (the seed calls them factors). A file put here is found by itself; nothing else needs an edit."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
