"""Who guesses the next tokens: the low bits of the same weights, the text itself, or a smaller model.

A guess may be anything: verification decides what stands. What a proposer owes is speed, and for sampling the
distribution that its guesses were really drawn from.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import UsageError
from tapwb.execution.bits import Bits
from tapwb.execution.speculative.verify import Proposal
from tapwb.execution.stepper import Stepper

_LARGE_VOCABULARY = 8192

#: Chooses a token by logits of shape (vocabulary,); gives the logarithm of its distribution unless it is certain.
Draw = Callable[[Tensor], tuple[int, Tensor | None]]


class Proposer(Protocol):
    """Guesses what follows a text."""

    @property
    def name(self) -> str:
        """As users write it: ``"self:4"``, ``"ngram"``, ``"draft:ID"``."""

    def propose(self, token_ids: Sequence[int], n_tokens: int) -> Proposal:
        """Guess up to ``n_tokens`` tokens.

        Args:
            token_ids: Prompt and answer so far. The target has read all but the last; between calls it only grows.
            n_tokens: Largest number of guesses, at least 1.
        """


class SelfProposer:
    """The same weights, read at a low level, over the same cache.

    Keys and values of the guesses are written at the low level and taken back, so that verification writes them anew
    at the high one.

    Args:
        stepper: The target's.
        bits: The low level: one, or (layer_group, 1).
        draw: Chooses the guesses.
        name: As users write it.
        n_vocabulary: Tokens that the target knows; by default guesses may be any of them.
    """

    def __init__(self, stepper: Stepper, bits: Bits, draw: Draw, name: str, n_vocabulary: int | None = None) -> None:
        self._stepper, self._bits, self._draw, self.name = stepper, bits, draw, name
        self._n_vocabulary = n_vocabulary

    def propose(self, token_ids: Sequence[int], n_tokens: int) -> Proposal:
        """See :meth:`Proposer.propose`."""
        start = self._stepper.length
        try:
            return _guess(self._stepper, token_ids[-1:], n_tokens, self._bits, self._draw, self._n_vocabulary)
        finally:
            self._stepper.crop(start)


class ModelProposer:
    """A separate model with the same tokenizer, over a cache of its own.

    Args:
        stepper: Of the draft model; has read ``prompt_ids``.
        prompt_ids: What it has read.
        bits: Level it is read at.
        draw: Chooses the guesses.
        name: As users write it.
    """

    def __init__(self, stepper: Stepper, prompt_ids: Sequence[int], bits: Bits, draw: Draw, name: str) -> None:
        self._stepper, self._bits, self._draw, self.name = stepper, bits, draw, name
        self._read = list(prompt_ids)

    def propose(self, token_ids: Sequence[int], n_tokens: int) -> Proposal:
        """See :meth:`Proposer.propose`."""
        kept = _shared(self._read, token_ids[:-1])  # the last token is always read: its logits make the first guess
        self._stepper.crop(kept)
        proposal = _guess(self._stepper, token_ids[kept:], n_tokens, self._bits, self._draw)
        self._read = [*token_ids, *proposal.token_ids[:-1]]
        return proposal


class NgramProposer:
    """What followed the last words when they stood in the text before (prompt lookup).

    The longest of the given sizes that occurs again wins, at its latest place. A continuation that runs into the end
    of the text goes on with itself, so that a repetition is guessed as a whole.

    Args:
        sizes: Numbers of last tokens that are looked up.

    Raises:
        UsageError: If there is no size, or one below 1.
    """

    name = "ngram"

    def __init__(self, sizes: Sequence[int] = (4, 3, 2)) -> None:
        if not sizes or min(sizes) < 1:
            raise UsageError(f"n-grams of sizes {list(sizes)} cannot be looked up. Give sizes of at least 1 token.")
        self._sizes = tuple(sorted(set(sizes), reverse=True))
        self._follows: dict[tuple[int, ...], int] = {}
        self._n_indexed = 0

    def propose(self, token_ids: Sequence[int], n_tokens: int) -> Proposal:
        """See :meth:`Proposer.propose`."""
        self._index(token_ids)
        for size in self._sizes:
            found = self._follows.get(tuple(token_ids[-size:])) if len(token_ids) >= size else None
            if found is not None:
                guesses = list(token_ids[found : found + n_tokens])
                while len(guesses) < n_tokens:
                    guesses.append(guesses[found + len(guesses) - len(token_ids)])
                return Proposal(tuple(guesses))
        return Proposal()

    def _index(self, token_ids: Sequence[int]) -> None:
        """Note where each n-gram is followed by a token; the newest place overwrites older ones."""
        for end in range(self._n_indexed, len(token_ids)):
            for size in self._sizes:
                if end >= size:
                    self._follows[tuple(token_ids[end - size : end])] = end
        self._n_indexed = len(token_ids)


def check_draft(target_vocabulary: dict[str, int], draft_vocabulary: dict[str, int], name: str) -> None:
    """Refuse a draft model whose tokens mean something else.

    Args:
        target_vocabulary: Token texts to ids of the target's tokenizer.
        draft_vocabulary: The same of the draft's.
        name: The draft model, for the message.

    Raises:
        UsageError: If the vocabularies differ.
    """
    if target_vocabulary == draft_vocabulary:
        return
    differing = sum(draft_vocabulary.get(token) != index for token, index in target_vocabulary.items())
    raise UsageError(
        f"draft model {name} has another tokenizer: {differing} of {len(target_vocabulary)} tokens have another number "
        f"or are missing, and it has {len(draft_vocabulary)} in all. Choose a draft of the same family, or self."
    )


def guessed_outputs(n_vocabulary: int) -> int:
    """How many tokens of a vocabulary guesses are made from: the first half of a large one, else all.

    Tokenizers number their tokens in the order in which they were merged, so frequent ones come first: of SmolLM2's
    49,152 the first half are 95 to 97 % of English text. A pass at 4 bits then reads a sixth fewer bytes, and a token
    of the other half is a wrong guess like any other (frequency-ranked drafting, Zhao et al. 2025, arXiv 2502.14856).
    """
    return n_vocabulary if n_vocabulary < _LARGE_VOCABULARY else n_vocabulary // 32 * 16


def _guess(
    stepper: Stepper, unread: Sequence[int], n_tokens: int, bits: Bits, draw: Draw, n_vocabulary: int | None = None
) -> Proposal:
    """Read what was not read yet, then one guess after the other; the last guess is not read."""
    n_outputs = None if n_vocabulary is None else guessed_outputs(n_vocabulary)
    guesses: list[int] = []
    log_q: list[Float[Tensor, " vocabulary"]] = []
    reading = list(unread)
    while len(guesses) < n_tokens:
        token, certainty = draw(stepper.advance(torch.tensor(reading), bits, n_outputs)[-1])
        guesses.append(token)
        if certainty is not None:
            missing = 0 if n_vocabulary is None else n_vocabulary - certainty.shape[0]
            log_q.append(torch.nn.functional.pad(certainty, (0, missing), value=-torch.inf))
        reading = [token]
    return Proposal(tuple(guesses), torch.stack(log_q) if log_q else None)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
