"""This program, at one precision."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tapwb.core.precision import parse_precision
from tapwb.engine import TAPConfig, TAPEngine, stored_levels
from tapwb.evals.decode_peers.contender import Clock, Timing, mean_nll_nats
from tapwb.execution import dispatch
from tapwb.execution.prompt_attention import rounding_prompts

#: Of a prompt, for comparing with the reference; fewer than are rounded.
_GATE_TOKENS = dispatch.ROUNDED_ROWS - 1
#: About what 6 bits cost on ordinary text; rounding moves a hundredth of it on average.
_MOST_MOVED_NATS = 0.02

if TYPE_CHECKING:
    from tapwb.execution.trace import TokenEvent


class TapContender:
    """:meth:`tapwb.engine.TAPEngine.generate`.

    Args:
        precision: In the grammar of :mod:`tapwb.core.precision`.
        cells: Plain or calibrated.
        group_size: Columns per quantization group.
    """

    def __init__(self, precision: str, cells: str = "plain", group_size: int | None = None) -> None:
        self._request, self._cells, self._group_size = parse_precision(precision), cells, group_size
        self._kernel: dict[str, str] = {}

    def load(self, folder: str, text: str) -> None:
        """Load and nest; kernels are built and chosen at the first product, so a short text runs."""
        config = TAPConfig(
            precision_levels=(8,), mean_bits=8, cells=self._cells, group_size=self._group_size, time_reference=False
        )
        self._engine = TAPEngine(config)
        self._engine.load_model(folder, levels=sorted(stored_levels(self._request)))
        self.generate(text, (), 4)

    def generate(self, prompt: str, prompt_ids: Sequence[int], n_new: int) -> Timing:
        """See :class:`~tapwb.evals.decode_peers.contender.Contender`; ends at an end token."""
        del prompt_ids  # the same text gives the same tokens

        def note(event: "TokenEvent") -> None:
            clock.token(event.token_id)

        clock = Clock()
        _, trace, _ = self._engine.trace(prompt, n_new, precision=self._request, on_token=note)
        self._kernel = {"kernel": trace.kernel.name, "why": trace.kernel.reason}
        return clock.timing

    def gate(self, prompt: str, n_new: int = 8) -> list[dict[str, Any]]:
        """Whether every level writes the tokens of the reference arithmetic; no speed counts without it.

        The reference is slow, so it continues the beginning of a long prompt. Where long prompts are rounded to bf16,
        the whole of it must in addition be followed by nearly the same distribution as without.

        Args:
            prompt: The text to continue.
            n_new: Tokens to compare.
        """
        checks = []
        ids = self._engine.tokenize(prompt)
        begin = self._beginning(prompt, ids)
        for bits in self._engine.nested.levels:
            _, fast, _ = self._engine.trace(begin, n_new, precision=str(bits))
            with dispatch.force("reference"):
                _, exact, _ = self._engine.trace(begin, n_new, precision=str(bits))
            wrong = sum(a != b for a, b in zip(fast.token_ids, exact.token_ids, strict=False))
            wrong += abs(len(fast.token_ids) - len(exact.token_ids))
            checks.append({"name": f"tokens at {bits} bits", "value": wrong, "limit": 0, "met": wrong == 0})
            if ids.shape[1] >= dispatch.ROUNDED_ROWS and dispatch.can_round():
                moved = self._moved_by_rounding(ids, bits)
                name = f"nats that rounding the prompt moves, {bits} bits"
                checks.append(
                    {"name": name, "value": moved, "limit": _MOST_MOVED_NATS, "met": moved <= _MOST_MOVED_NATS}
                )
        return checks

    def _beginning(self, prompt: str, ids: torch.Tensor) -> str:
        loaded = self._engine.loaded
        if loaded is None or ids.shape[1] <= _GATE_TOKENS:
            return prompt
        begin: str = loaded.tokenizer.decode(ids[0, :_GATE_TOKENS], skip_special_tokens=True)
        return begin

    @torch.inference_mode()
    def _moved_by_rounding(self, ids: torch.Tensor, bits: int) -> float:
        """KL divergence of the distribution behind a prompt that was read in bf16 from that behind the exact one."""
        nested = self._engine.nested
        with nested.context.use(bits):
            exact = nested.model(ids, logits_to_keep=1, use_cache=False).logits[0, -1].log_softmax(-1)
            with rounding_prompts(nested.model):
                rounded = nested.model(ids, logits_to_keep=1, use_cache=False).logits[0, -1].log_softmax(-1)
        return float((exact.exp() * (exact - rounded)).sum())

    def nll_nats(self, windows: Sequence[Sequence[int]]) -> list[float]:
        """See :class:`~tapwb.evals.decode_peers.contender.Contender`.

        Raises:
            NotImplementedError: If tokens or layers have levels of their own.
        """
        if self._request.kind != "uniform" or self._request.bits is None:
            raise NotImplementedError("tokens have levels of their own: see tapwb eval perplexity")
        nested, bits = self._engine.nested, self._request.bits

        def logits(ids: torch.Tensor) -> torch.Tensor:
            with nested.context.use(bits):
                return nested.model(ids, use_cache=False).logits[0]  # type: ignore[no-any-return]

        return mean_nll_nats(logits, windows)

    def weights_bytes(self) -> int:
        """Of the one nested copy, all levels included."""
        return self._engine.weights_bytes()

    def facts(self) -> dict[str, Any]:
        """What multiplied."""
        return {"precision": str(self._request), "cells": self._cells, **self._kernel}
