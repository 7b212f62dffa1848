"""A model with its cache, advanced by a few tokens at a time and taken back again.

What a decode loop and speculation are written against, so that neither knows whether PyTorch or one native call runs
the layers. Levels are given for each advance; how the cache is held is the stepper's business.
"""

from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tapwb.core.errors import ExecutionError
from tapwb.execution.bits import Bits
from tapwb.execution.nest import NestedModel
from tapwb.execution.state.mixers.replace import replace_mixers
from tapwb.models.cache_rules import cache_arguments


class Stepper(Protocol):
    """One sequence of one model."""

    @property
    def length(self) -> int:
        """Tokens that were read so far."""

    def advance(
        self, token_ids: Int[Tensor, " token"], bits: Bits, n_outputs: int | None = None
    ) -> Float[Tensor, "token vocabulary"]:
        """Read more tokens.

        Args:
            token_ids: The tokens that follow, at least one.
            bits: One level for all, or levels of shape (token,) or (layer_group, token).
            n_outputs: Logits of the first so many tokens of the vocabulary are enough; more may come.

        Returns:
            Logits after each of them.
        """

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""


class TorchStepper:
    """The model as PyTorch runs it, with a transformers cache.

    Args:
        model: The causal language model. Recurrent layers of transformers are replaced by ours.
        cache: A transformers cache; tokens it holds already count.
        nested: Handle of the nested weights, or ``None`` to run the model as it was loaded.
    """

    def __init__(self, model: Any, cache: Any, nested: NestedModel | None = None) -> None:
        replace_mixers(model)
        self._model, self._cache, self._nested = model, cache, nested

    @property
    def length(self) -> int:
        """Tokens that were read so far."""
        return int(self._cache.get_seq_length())

    def advance(
        self, token_ids: Int[Tensor, " token"], bits: Bits, n_outputs: int | None = None
    ) -> Float[Tensor, "token vocabulary"]:
        """See :meth:`Stepper.advance`; all logits come."""
        token_ids = token_ids.to(self._model.device)
        options = cache_arguments(self._model, self._cache, token_ids.numel())
        with torch.inference_mode():
            if self._nested is None:
                return self._model(token_ids[None], **options).logits[0]  # type: ignore[no-any-return]
            with self._nested.context.use(bits):
                return self._model(token_ids[None], **options).logits[0]  # type: ignore[no-any-return]

    def crop(self, length: int) -> None:
        """See :meth:`Stepper.crop`.

        Raises:
            ExecutionError: If there are fewer tokens, or the cache cannot be taken back so far.
        """
        if not 0 <= length <= self.length:
            raise ExecutionError(f"cannot keep {length} of {self.length} tokens. Name a number between 0 and that.")
        if length < self.length:
            try:
                self._cache.crop(length - self.length)
            except RuntimeError as error:
                raise ExecutionError(f"this cache cannot be taken back to {length} tokens: {error}") from error
