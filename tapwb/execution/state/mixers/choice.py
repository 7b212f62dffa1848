"""Which memory a recurrent layer gets when a cache is to be small."""

from typing import Any

from tapwb.execution.state.default import WRITE_EVERY, default_memory
from tapwb.execution.state.memory import TapMemory
from tapwb.execution.state.mixers.cache_layer import KeptMemory, MakeMemory, plain_memory
from tapwb.models.adapters import adapters

#: Bytes of a number of the state that the default codec saves, and of a number of the ring of updates.
_SAVED_BYTES, _RING_BYTES = 2.5, 4


def small_memory(config: Any) -> MakeMemory:
    """Few bits for states that are larger than what the updates between two writes take, fp32 for the others.

    A state of one number per channel and state, as in Mamba-1, is as small as the inputs of a few tokens: a ring of
    updates beside it would cost more than a codec saves.

    Args:
        config: Configuration of the model.
    """
    text_config = config.get_text_config(decoder=True)
    known = adapters[text_config.model_type].memory(text_config).states if text_config.model_type in adapters else ()
    worth = {state.layer for state in known if len(state.shape) == 3 and _pays(*state.shape[1:])}

    def make(layer_idx: int) -> KeptMemory:
        return default_memory() if layer_idx in worth else plain_memory(layer_idx)

    return make


def is_small(memory: KeptMemory) -> bool:
    """Whether a memory keeps its state at few bits.

    Args:
        memory: Of a cache.
    """
    return isinstance(memory, TapMemory)


def _pays(rows: int, columns: int) -> bool:
    """Whether a head's matrix is larger than a full ring of its rows and columns."""
    return _SAVED_BYTES * rows * columns > _RING_BYTES * (WRITE_EVERY - 1) * (rows + columns)
