"""Importance token by token, from past information only.

While decoding, the decision about token t falls after t was drawn and before it is processed. So only causal signals
count; a signal that is not causal is replaced by its stand-in (own entropy by the previous step's) or left out.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import UsageError
from tapwb.importance.combine import check_weights
from tapwb.importance.facts import TokenFacts
from tapwb.importance.normalize import RunningQuantile
from tapwb.importance.signal import SHUFFLED, metadata, signals


@dataclass(frozen=True, slots=True)
class StreamState:
    """Where a stream stands, to come back to.

    Attributes:
        index: Position of the next token.
        last_id: Id of the token before it.
        windows: Past values of each signal, oldest first.
    """

    index: int
    last_id: int
    windows: dict[str, tuple[float, ...]]


class ImportanceStream:
    """Scores one new token at a time.

    Args:
        weights: Weights by signal name, as the analyzer has them.
        facts: The prompt (first row of the batch): fills the windows of comparison and tells position and vocabulary.
        window: How many past tokens a new one is compared with.
        seed: Seed of the random control.

    Attributes:
        signals: What is really used, with weights of sum 1.
        dropped: Signals of the request that have no causal form.

    Raises:
        UsageError: If the request is the oracle, which needs the answer before it is given.
    """

    def __init__(
        self, weights: Mapping[str, float], facts: TokenFacts | None = None, *, window: int = 512, seed: int = 0
    ) -> None:
        if "oracle" in weights:
            raise UsageError(
                "the oracle knows a token's damage only after processing it twice, so it cannot decide while decoding. "
                "Use it on a given text (tapwb eval perplexity, tapwb tokens), or choose entropy_prev here."
            )
        self.signals, self.dropped = causal_weights(weights)
        self._seed = seed
        self._prompt = facts
        self._index = 0
        self._last_id = 0
        self._quantiles = {name: RunningQuantile(window) for name in self.signals}
        if facts is not None:
            self._prime(facts)

    def next_score(self, logits_before: Float[Tensor, " vocab"], token_id: int, text: str = "") -> float:
        """Score in [0, 1] of a token that was drawn and not yet processed; the token then joins the past.

        Args:
            logits_before: The distribution that it was drawn from.
            token_id: Its id.
            text: Its text, for the digit rule.
        """
        facts = self._facts_of(logits_before, token_id, text)
        score = 0.0
        for name, weight in self.signals.items():
            score += weight * self._quantiles[name].score(float(signals[name](facts)[0, -1]))
        self._index += 1
        self._last_id = token_id
        return min(1.0, max(0.0, score))

    def snapshot(self) -> StreamState:
        """Where the stream stands now."""
        windows = {name: quantile.snapshot() for name, quantile in self._quantiles.items()}
        return StreamState(self._index, self._last_id, windows)

    def restore(self, state: StreamState) -> None:
        """Go back to a snapshot, as if the tokens since then had not been."""
        self._index, self._last_id = state.index, state.last_id
        for name, values in state.windows.items():
            self._quantiles[name].restore(values)

    def _prime(self, facts: TokenFacts) -> None:
        for name, quantile in self._quantiles.items():
            # A prompt scored by another signal may lack this one's facts: then the window fills while decoding.
            with contextlib.suppress(UsageError):
                quantile.update(signals[name](facts)[0].tolist())
        self._index = facts.first_index + facts.n_tokens
        self._last_id = int(facts.token_ids[0, -1])

    def _facts_of(self, logits_before: Tensor, token_id: int, text: str) -> TokenFacts:
        """Two tokens: the last one, whose row is known, and the new one, whose row is not (and is not looked at)."""
        known, prompt = logits_before.flatten(), self._prompt
        ids = torch.tensor([[self._last_id, token_id]], device=known.device)
        return TokenFacts(
            token_ids=ids,
            vocab_size=known.numel(),
            special_ids=frozenset() if prompt is None else prompt.special_ids,
            token_texts=(("", text),),
            token_frequency=None if prompt is None else prompt.token_frequency,
            n_prompt_tokens=0 if prompt is None else prompt.n_prompt,
            logits=torch.stack([known, known])[None],
            head=None if prompt is None else prompt.head,
            first_index=self._index - 1,
            seed=self._seed,
        )


def causal_weights(weights: Mapping[str, float]) -> tuple[dict[str, float], tuple[str, ...]]:
    """The weights that can be used while decoding, and the signals that cannot.

    A shuffled signal becomes random: without a sequence there is nothing to shuffle. If nothing is left, the previous
    step's entropy decides alone.
    """
    kept: dict[str, float] = {}
    dropped: list[str] = []
    for name, weight in weights.items():
        stand_in = "random" if name.startswith(SHUFFLED) else metadata(name)["decode_as"]
        if stand_in:
            kept[stand_in] = kept.get(stand_in, 0.0) + weight
        else:
            dropped.append(name)
    if sum(kept.values()) <= 0:
        kept = {"entropy_prev": 1.0}
    return check_weights(kept), tuple(dropped)
