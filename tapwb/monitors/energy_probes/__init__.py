"""Energy instruments, one file each. A file added here registers itself; nothing else needs an edit."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
