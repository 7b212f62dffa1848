"""The anatomy of a model by name, from its configuration: no weights are read, and from the hub none are fetched."""

from pathlib import Path

from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.models import hub
from tapwb.models.anatomy import anatomy_from_config
from tapwb.models.anatomy_records import ModelAnatomy
from tapwb.models.catalog import catalog
from tapwb.models.info import ModelInfo
from tapwb.models.resolve import resolve_model


def shapes_of(model_id: str, progress: Progress = NO_PROGRESS) -> tuple[ModelAnatomy, ModelInfo]:
    """Anatomy and identity of a model.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id. Of an id that is not on this disk, only the
            configuration is fetched; a catalog entry or a GGUF file is fetched and converted as for loading.
        progress: Told about downloads.

    Raises:
        ModelNotFound: If nothing answers to the name.
        ModelError: As :func:`~tapwb.models.resolve.resolve_model` raises.
    """
    from transformers import AutoConfig

    from tapwb.models.own_models import register_own_models

    register_own_models()
    here = model_id in catalog or Path(model_id).expanduser().exists()
    if here or hub.cached_snapshot(model_id) or hub.hub_access() is not None:
        # Without the hub, a name that is not here is refused with the nearest names.
        resolved = resolve_model(model_id, progress=progress)
        return anatomy_from_config(AutoConfig.from_pretrained(resolved.path)), resolved.info
    config = AutoConfig.from_pretrained(model_id)
    info = ModelInfo(
        id=model_id,
        title=model_id,
        revision=str(getattr(config, "_commit_hash", None) or "main"),
        checksum_sha256="weights not fetched",
        path=Path(model_id),
        source="hub",
        licence="unknown",
    )
    return anatomy_from_config(config), info
