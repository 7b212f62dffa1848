"""Bytes that the tensors of a module really occupy: each storage once, however many names it has.

Tied weights share a storage, and a view of one row keeps the whole storage alive; counting ``numel * element_size``
over names gets both wrong. Tensors held in plain attributes, lists, dictionaries and records (a quantized weight is a
record of planes) count too, because they occupy memory just the same. Tensors on the ``meta`` device occupy none.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Containers inside containers are followed this deep; deeper tensors belong to something other than the module.
_DEPTH = 4


def tensor_bytes(module: "nn.Module") -> int:
    """Bytes of all storages that a module's tensors keep alive, on every device together.

    Args:
        module: Parameters, buffers and tensors in plain attributes of it and its submodules are counted.
    """
    return sum(bytes_by_dtype(module).values())


def bytes_by_dtype(module: "nn.Module") -> dict[str, int]:
    """Bytes of :func:`tensor_bytes` by data type, for example ``{"uint8": 1000, "float16": 64}``.

    A storage read through two data types is counted under the one that is met first.
    """
    import torch

    seen: set[tuple[str, int]] = set()
    found: dict[str, int] = {}
    for tensor in _tensors(module):
        if tensor.device.type == "meta" or tensor.layout is not torch.strided:
            continue
        storage = tensor.untyped_storage()
        # The address of the storage object, not of its data: two empty storages may share the latter.
        key = (str(tensor.device), storage._cdata)
        if key not in seen:
            seen.add(key)
            name = str(tensor.dtype).removeprefix("torch.")
            found[name] = found.get(name, 0) + storage.nbytes()
    return dict(sorted(found.items()))


def _tensors(module: "nn.Module") -> Iterator["Tensor"]:
    for part in module.modules():
        yield from part.parameters(recurse=False)
        yield from part.buffers(recurse=False)
        # Parameters, buffers and submodules live in private dictionaries of their own and are done.
        attributes = {name: value for name, value in vars(part).items() if name not in _OWN}
        yield from _inside(attributes, _DEPTH)


_OWN = frozenset({"_parameters", "_buffers", "_modules"})


def _inside(value: Any, depth: int) -> Iterator["Tensor"]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif depth == 0 or isinstance(value, torch.nn.Module | str | bytes | type):
        return
    elif isinstance(value, dict):
        for part in value.values():
            yield from _inside(part, depth - 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _inside(part, depth - 1)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _inside(getattr(value, field.name, None), depth - 1)
