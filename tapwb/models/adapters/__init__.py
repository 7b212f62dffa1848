"""One file per family of architectures; a file placed here registers itself.

Importing this package imports every file beside it, none of which imports transformers.
"""

import importlib
import pkgutil

from tapwb.models.adapters.registry import Adapter, adapters

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Adapter", "adapters"]
