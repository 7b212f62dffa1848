"""From a file of rwkv.cpp to a model: which version it is, its sizes, its parameters.

Sizes come from shapes of tensors, which the file has room for, never from the header alone: a garbled header could
announce any size. Modules are made without memory and get their parameters from the file, one tensor at a time.
"""

from pathlib import Path

import torch
from torch import Tensor

from tapwb.core.errors import CorruptWeights, UnsupportedModel
from tapwb.models.rwkv.config import VERSIONS, TapRwkvConfig
from tapwb.models.rwkv.model import RwkvForCausalLM
from tapwb.models.rwkv_file import RwkvFile, open_rwkv

# A tensor of layer 0's time mix that tells the version; the first one that is there decides.
_MARKS = (("k_k", "7"), ("time_maa_x", "6"), ("gate.weight", "5.2"), ("ln_x.weight", "5.1"), ("time_decay", "4"))
# Training code makes them for every layer; layer 0 never uses them.
_IDLE = frozenset(f"blocks.0.att.v{i}" for i in range(3))


def load_rwkv(path: Path) -> RwkvForCausalLM:
    """The model in ``path``, in float32 on the CPU.

    Args:
        path: File of rwkv.cpp.

    Raises:
        ModelNotFound: If there is no such file.
        CorruptWeights: If the file is damaged, or lacks a tensor, or one has a wrong shape.
        UnsupportedModel: If it is quantized, of a version other than 4, 5.2 and 7, or holds tensors of a variant.
    """
    file = open_rwkv(path)
    # Cut between two tensors, a file is well-formed; its last tensors tell, before it is taken for another version.
    for last in (f"blocks.{file.layers - 1}.ln1.weight", "ln_out.weight", "head.weight"):
        file.find(last)
    config = rwkv_config(file)
    with torch.device("meta"):
        model = RwkvForCausalLM(config)
    sources = {name: _source(file, name) for name, _ in model.named_parameters()}
    unused = file.tensors.keys() - sources.values() - _IDLE
    if unused:
        raise UnsupportedModel(
            f"{path.name} holds {len(unused)} tensors that RWKV-{config.version} of {file.layers} layers does not use, "
            f"among them {min(unused)!r}: it is a variant that would be computed wrongly. Give a model of the plain "
            "version."
        )
    weights = {name: _read(file, sources[name], tuple(p.shape)) for name, p in model.named_parameters()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def rwkv_version(file: RwkvFile) -> str:
    """``"4"``, ``"5.2"`` or ``"7"``: the format does not say, the names of the tensors do.

    Args:
        file: Its table.

    Raises:
        UnsupportedModel: If it is another version.
    """
    version = next((version for mark, version in _MARKS if f"blocks.0.att.{mark}" in file.tensors), None)
    if version not in VERSIONS:
        what = f"RWKV-{version}" if version else "a model without the time mix of any RWKV version"
        raise UnsupportedModel(f"{file.path.name} holds {what}; RWKV-4, 5.2 and 7 can be run. Give one of those.")
    return version


def rwkv_config(file: RwkvFile) -> TapRwkvConfig:
    """Version, and the sizes that the shapes of the first tensors tell.

    Args:
        file: Its table.

    Raises:
        CorruptWeights: If they contradict the header or each other, or a tensor is missing.
        UnsupportedModel: If it is another version.
    """
    version = rwkv_version(file)
    vocabulary, width = _matrix(file, "emb.weight")
    if (vocabulary, width) != (file.vocabulary, file.width):
        raise CorruptWeights(
            f"the header of {file.path.name} announces {file.vocabulary} tokens of width {file.width}, its embedding "
            f"has {vocabulary} of {width}. Fetch the file again."
        )
    heads, ranks = 1, {"w": 1, "a": 1, "v": 1, "g": 1}
    if version != "4":
        heads, size = _matrix(file, f"blocks.0.att.{'r_k' if version == '7' else 'time_faaaa'}")
        if heads * size != width:
            raise CorruptWeights(
                f"{file.path.name} has {heads} heads of {size} channels and width {width}; the product must be the "
                "width. Fetch the file again."
            )
    if version == "7":
        # One layer has no v; a model of one layer needs no rank for it.
        of_layer = {"w": 0, "a": 0, "g": 0} | ({"v": 1} if file.layers > 1 else {})
        ranks |= {letter: _matrix(file, f"blocks.{layer}.att.{letter}1")[0] for letter, layer in of_layer.items()}
    feed_forward, _ = _matrix(file, "blocks.0.ffn.key.weight")
    return TapRwkvConfig(
        version=version,
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=file.layers,
        intermediate_size=feed_forward,
        num_attention_heads=heads,
        ranks=ranks,
        dtype="float32",
    )


def _matrix(file: RwkvFile, name: str) -> tuple[int, int]:
    """Rows and columns; the converter leaves a third axis of size 1 at some."""
    shape = file.find(name).shape
    if len(shape) == 3 and shape[2] == 1:
        shape = shape[:2]
    if len(shape) != 2:
        raise CorruptWeights(
            f"tensor {name!r} of {file.path.name} has shape {shape}; it must be a matrix. Fetch the file again."
        )
    return shape[0], shape[1]


def _source(file: RwkvFile, parameter: str) -> str:
    """Name in the file: low-rank maps are bare matrices there (``att.w1``) and modules here (``att.w1.weight``)."""
    bare = parameter.removesuffix(".weight")
    return file.find(bare if bare in file.tensors else parameter).name


def _read(file: RwkvFile, name: str, shape: tuple[int, ...]) -> Tensor:
    found = file.find(name).shape
    if [n for n in found if n != 1] != [n for n in shape if n != 1]:  # the converter leaves axes of size 1
        raise CorruptWeights(
            f"tensor {name!r} of {file.path.name} has shape {found}; {shape} fits the rest of the model. "
            "Fetch the file again."
        )
    return torch.from_numpy(file.read(name).reshape(shape))
