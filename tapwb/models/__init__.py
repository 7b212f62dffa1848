"""Stage 1: a model, and where its bytes are.

Names are imported on first use, because listing models must not cost the import of transformers. Two public names are
also names of modules and stay in them, since ``from tapwb.models import capture`` could mean either:
``tapwb.models.capture.capture`` and ``tapwb.models.catalog.catalog``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tapwb.models.anatomy import (
        CacheSpec,
        LinearSpec,
        ModelAnatomy,
        StateSpec,
        anatomy_from_config,
    )
    from tapwb.models.capture import Captured
    from tapwb.models.catalog import CatalogEntry, list_models
    from tapwb.models.info import CatalogRow, LoadedModel, ModelInfo, ResolvedModel
    from tapwb.models.load import load_model
    from tapwb.models.resolve import ensure_model, resolve_model
    from tapwb.models.tiny import save_tiny, tiny_model

_HOMES = {
    "CatalogEntry": "catalog",
    "list_models": "catalog",
    "CatalogRow": "info",
    "LoadedModel": "info",
    "ModelInfo": "info",
    "ResolvedModel": "info",
    "ensure_model": "resolve",
    "resolve_model": "resolve",
    "load_model": "load",
    "CacheSpec": "anatomy",
    "LinearSpec": "anatomy",
    "ModelAnatomy": "anatomy",
    "StateSpec": "anatomy",
    "anatomy_from_config": "anatomy",
    "Captured": "capture",
    "save_tiny": "tiny",
    "tiny_model": "tiny",
}
__all__ = [
    "CatalogEntry",
    "list_models",
    "CatalogRow",
    "LoadedModel",
    "ModelInfo",
    "ResolvedModel",
    "ensure_model",
    "resolve_model",
    "load_model",
    "CacheSpec",
    "LinearSpec",
    "ModelAnatomy",
    "StateSpec",
    "anatomy_from_config",
    "Captured",
    "save_tiny",
    "tiny_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
