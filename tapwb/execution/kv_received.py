"""Which cached tokens later queries read, and the bits that follow from it.

Saliency of a token is the root mean square of the attention probability that probe queries gave it, divided by the
number of probes that could see it: without that division early tokens would win by being seen longest (ZipCache, He et
al. 2024, arXiv:2405.14256, equation 8; theirs is the mean, and the square is what an error in the token costs). Of two
halves of the probes one is the newest and one is spread evenly over the pass (theirs is drawn at random).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tapwb.core.errors import UsageError
from tapwb.execution.kv_codes import KV_LEVELS

#: Probes of one pass: at least this many, or this share of the queries.
MIN_PROBES = 16
PROBE_SHARE = 0.1
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class AdaptiveKv:
    """How tokens are downgraded by the attention they received.

    Attributes:
        mean_bits: Mean of key and value bits over downgraded tokens, 2 to 8.
        key_extra: How many bits the mean of keys lies above ``mean_bits``, and that of values below.
        min_bits: Lowest level, one of ``KV_LEVELS``; a mean too low for it uses the lowest there is.
        waiting_pages: Sealed pages that stay at 8 bits until enough later queries have been seen.
        trust: Exponent of saliency. 1 would be right for a known saliency (reverse water-filling: an error costs the
            squared saliency); what was received so far only predicts what is to come.
        reorder: Replaces saliency of shape (layer, token) before bits are given; the controls of an experiment.
    """

    mean_bits: float
    key_extra: float = 0.5
    min_bits: int = 3
    waiting_pages: int = 4
    trust: float = 0.5
    reorder: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not KV_LEVELS[0] <= self.mean_bits <= KV_LEVELS[-1]:
            raise UsageError(f"a cache mean of {self.mean_bits:g} bits is out of range. Give 2 to 8, for example 4.")
        if self.min_bits not in KV_LEVELS:
            known = ", ".join(map(str, KV_LEVELS))
            raise UsageError(f"{self.min_bits} bits are no level of the cache. Use one of {known}.")

    def key_and_value_bits(self, saliency: Tensor) -> tuple[Tensor, Tensor]:
        """Bits of tokens that are planned together.

        Args:
            saliency: Shape (layer, token).

        Returns:
            Two tensors of that shape.
        """
        if self.reorder is not None:
            saliency = self.reorder(saliency)
        top = KV_LEVELS[-1]
        key_mean = min(self.mean_bits + self.key_extra, top)
        value_mean = max(2 * self.mean_bits - key_mean, KV_LEVELS[0])
        return self._bits(saliency, key_mean), self._bits(saliency, value_mean)

    def _bits(self, saliency: Tensor, mean: float) -> Tensor:
        levels = [level for level in KV_LEVELS if level >= self.min_bits]
        return bits_at_mean(saliency, mean, levels if levels[0] < mean else KV_LEVELS, self.trust)


def bits_at_mean(saliency: Tensor, mean_bits: float, levels: tuple[int, ...] | list[int], trust: float) -> Tensor:
    """Levels that grow with the logarithm of saliency and have a given mean.

    Args:
        saliency: Any shape, not negative.
        mean_bits: Wanted mean; the result's is at most that, and below it by less than one token's step where no two
            saliencies are equal.
        levels: Allowed bits, ascending.
        trust: Exponent of saliency.

    Returns:
        Bits, of the same shape.
    """
    table = torch.tensor(levels, device=saliency.device)
    cuts = (table[1:] + table[:-1]).double() / 2
    wish = trust * torch.log2(saliency.double().clamp(min=_TINY))
    low, high = float(levels[0] - wish.max()) - 1, float(levels[-1] - wish.min()) + 1
    for _ in range(60):  # bisection of the one unknown: bits of a token of saliency 1
        middle = (low + high) / 2
        too_many = table[torch.bucketize(wish + middle, cuts)].double().mean() > mean_bits + 1e-9
        low, high = (low, middle) if too_many else (middle, high)
    return table[torch.bucketize(wish + low, cuts)]


def probe_rows(n_queries: int, device: torch.device | str = "cpu") -> Tensor:
    """Rows of a pass that serve as probes, ascending: the newest half, and a half spread over the rest."""
    wanted = min(n_queries, max(MIN_PROBES, round(PROBE_SHARE * n_queries)))
    newest = wanted - wanted // 2
    rest = n_queries - newest
    spread = (torch.arange(wanted // 2, dtype=torch.float64) + 0.5) * rest / max(wanted // 2, 1)
    return torch.cat([spread.long(), torch.arange(rest, n_queries)]).to(device)


class ReceivedAttention:
    """Running saliency of the tokens of one layer from a moving start on."""

    def __init__(self) -> None:
        self.start = 0
        self._squares = torch.zeros(0)
        self._seen = torch.zeros(0)

    def add(self, squares: Tensor, seen: Tensor) -> None:
        """Count one pass.

        Args:
            squares: Sum over probes of squared probability, for every token from the first, shape (token,).
            seen: Number of probes that could see each token, shape (token,).
        """
        squares, seen = squares[self.start :].cpu(), seen[self.start :].cpu()
        grown = len(squares) - len(self._squares)
        self._squares = torch.nn.functional.pad(self._squares, (0, grown)) + squares
        self._seen = torch.nn.functional.pad(self._seen, (0, grown)) + seen

    def saliency(self, start: int, stop: int) -> Tensor:
        """Saliency of the tokens at positions ``start`` to ``stop``, shape (stop - start,); unseen ones get zero."""
        part = slice(start - self.start, stop - self.start)
        return (self._squares[part] / self._seen[part].clamp(min=1)).sqrt()

    def forget_before(self, position: int) -> None:
        """Drop what is known of tokens before ``position``."""
        drop = position - self.start
        self._squares, self._seen, self.start = self._squares[drop:].clone(), self._seen[drop:].clone(), position

    def crop(self, n_tokens: int) -> None:
        """Keep the first ``n_tokens`` tokens of the text."""
        keep = max(n_tokens - self.start, 0)
        self._squares, self._seen = self._squares[:keep], self._seen[:keep]

    def nbytes(self) -> int:
        """Bytes of the sums."""
        return self._squares.nbytes + self._seen.nbytes
