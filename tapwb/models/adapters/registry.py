"""The registry of families: what a ``model_type`` keeps of a sequence, and the names of its matrices.

Matrices, norms and embeddings are read from the model itself on torch's ``meta`` device, so a family only has to state
the two things that no module shows: which caches and states it keeps, and roles that the usual names do not tell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tapwb.core.registry import Registry
from tapwb.models.cache_rules import SequenceMemory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class Adapter:
    """Knowledge about one family.

    Attributes:
        memory: Caches and states from the text configuration alone.
        roles: (pattern, role) pairs tried before the usual names; see :mod:`tapwb.models.linear_sites`.
    """

    memory: Callable[["PreTrainedConfig"], SequenceMemory]
    roles: tuple[tuple[str, str], ...] = ()


adapters: Registry[Adapter] = Registry("architecture adapter")
