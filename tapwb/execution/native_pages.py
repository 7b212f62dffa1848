"""All packed weights of a model side by side, in large pages, in the order in which a step reads them.

A decode step streams every weight once. Spread over pages of 4 KB the processor spends a third of that time looking
addresses up: one core of the machine this was written on reads 16 GB/s so, and 28 GB/s from pages of 2 MB.
"""

import mmap
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tapwb.core.heap import trim_heap
from tapwb.execution.packed import PackedWeight

_LARGE_PAGE_BYTES = 1 << 21
_ALIGN_BYTES = 64
#: Below this, weights fit the processor's caches and its table of addresses anyway.
_LEAST_BYTES = 1 << 23
#: Freed memory is handed back to the system whenever so much was moved, so that a model is never held twice.
_TRIM_BYTES = 1 << 26


def gather_weights(model: nn.Module) -> int:
    """Move the packed weights of a model into one piece of memory with large pages; nothing else about them changes.

    Args:
        model: A nested model. Weights that are not on the CPU stay where they are.

    Returns:
        Bytes that were moved; 0 where it is not worth it, or the system has no large pages to ask for.
    """
    held = list(_buffers(model))
    total = sum(_padded(tensor) for _, _, tensor in held)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or total < _LEAST_BYTES:
        return 0
    try:
        # Private, because shared memory gets large pages by another switch, which is off almost everywhere.
        memory = mmap.mmap(-1, total + _LARGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(advice)
    except OSError:  # a kernel built without them, or no room for a second copy
        return 0
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % _LARGE_PAGE_BYTES
    since_trim = 0
    while held:
        module, name, tensor = held.pop(0)
        new = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=start).view(tensor.shape)
        new.copy_(tensor)
        module._buffers[name] = new
        start, since_trim = start + _padded(tensor), since_trim + tensor.nbytes
        del tensor
        if since_trim >= _TRIM_BYTES or not held:
            trim_heap()
            since_trim = 0
    return total


def _buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in model.modules():
        if isinstance(module, PackedWeight):
            for name, tensor in module._buffers.items():
                if tensor is not None and tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.numel():
                    yield module, name, tensor


def _padded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGN_BYTES) * _ALIGN_BYTES
