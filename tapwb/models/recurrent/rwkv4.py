"""The weighted average of RWKV-4 (Peng et al. 2023, arXiv:2305.13048, the wkv of its time mixing).

Each channel averages its values with weights ``exp(k + age * log_decay)``, and ``exp(k + bonus)`` for the current
token. Sums are kept relative to a running maximum of the exponents, which is part of the state.

An exponent less the maximum is added up as ``(k - maximum) + shift``, not ``(k + shift) - maximum``: the first
difference of two near numbers is exact, so it brings back what rounding took from the maximum. With exponents of
hundreds the other order loses 1e-5 of a weight with every token.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.models.recurrent.forgetting import split_decay
from tapwb.models.recurrent.form import RecurrentForm, State, StateSpec, TokenInputs, check_tokens

#: Maximum of no exponents at all: finite, because differences of infinities are not numbers. The same as transformers'.
EMPTY_MAXIMUM = -1e38


@dataclass(frozen=True, slots=True, eq=False)
class RWKV4Inputs(TokenInputs):
    """What an RWKV-4 layer gives its average.

    Attributes:
        k: Exponents of the weights, of any size, shape (batch, token, channel).
        v: Values.
        log_decay: What an exponent loses with each token, never positive, shape (channel,).
        bonus: What the current token's exponent gains, shape (channel,).
    """

    k: Float[Tensor, "batch token channel"]
    v: Float[Tensor, "batch token channel"]
    log_decay: Float[Tensor, " channel"]
    bonus: Float[Tensor, " channel"]

    PER_TOKEN: ClassVar[tuple[str, ...]] = ("k", "v")
    WRITTEN: ClassVar[tuple[str, ...]] = ("v",)


class _Sums(NamedTuple):
    """Sums of weights and of weighted values, as multiples of ``exp(maximum)``."""

    numerator: Tensor
    denominator: Tensor
    maximum: Tensor


@dataclass(frozen=True, slots=True)
class RWKV4(RecurrentForm[RWKV4Inputs]):
    """The average of one layer.

    Attributes:
        channels: Attention width of the layer.
    """

    channels: int

    def state_spec(self) -> tuple[StateSpec, ...]:
        """Three tensors of shape (channel,); only together do they mean something."""
        axes, shape = ("channel",), (self.channels,)
        return (
            StateSpec("numerator", axes, shape, "sum of weighted values, divided by exp(maximum)"),
            StateSpec("denominator", axes, shape, "sum of weights, divided by exp(maximum)"),
            StateSpec("maximum", axes, shape, "largest exponent so far, decayed", initial=EMPTY_MAXIMUM),
        )

    def step(self, inputs: RWKV4Inputs, state: State) -> tuple[Float[Tensor, "batch token channel"], State]:
        """See :meth:`RecurrentForm.step`."""
        check_tokens(inputs, single=True)
        sums, token = _Sums(**state), _of_token(inputs.k[:, 0], inputs.v[:, 0])
        out = _average(_add(sums, token, new_shift=inputs.bonus))
        return out.unsqueeze(1), _add(sums, token, old_shift=inputs.log_decay)._asdict()

    def chunk(self, inputs: RWKV4Inputs, state: State) -> tuple[Float[Tensor, "batch token channel"], State]:
        """See :meth:`RecurrentForm.chunk`.

        Chunks are as long as there are chunks. All chunks are stepped side by side from nothing; then the sums before
        each chunk are carried from chunk to chunk; then both are added for all tokens.
        """
        check_tokens(inputs)
        n_tokens, log_decay = inputs.n_tokens, inputs.log_decay
        length = math.isqrt(n_tokens - 1) + 1
        k, v = (_fold(tensor, length) for tensor in (inputs.k, inputs.v))
        local = _running_sums(k, v, log_decay)
        starts = [_Sums(**state)]
        for chunk in range(k.shape[1]):
            n_read = min(length, n_tokens - chunk * length)
            starts.append(
                _add(starts[-1], _Sums(*(tensor[:, chunk, n_read] for tensor in local)), old_shift=n_read * log_decay)
            )
        start = _Sums(*(torch.stack(tensors, dim=1).unsqueeze(2) for tensors in zip(*starts[:-1], strict=True)))
        age = torch.arange(length, device=k.device).unsqueeze(-1)
        before = _add(start, _Sums(*(tensor[:, :, :length] for tensor in local)), old_shift=age * log_decay)
        out = _average(_add(before, _of_token(k, v), new_shift=inputs.bonus))
        return out.flatten(1, 2)[:, :n_tokens], starts[-1]._asdict()


def _of_token(k: Tensor, v: Tensor) -> _Sums:
    return _Sums(v, torch.ones_like(v), k)


def _add(old: _Sums, new: _Sums, old_shift: Tensor | float = 0.0, new_shift: Tensor | float = 0.0) -> _Sums:
    """Both together, after their exponents were shifted."""
    maximum = torch.maximum(old.maximum + old_shift, new.maximum + new_shift)
    kept, change = split_decay((old.maximum - maximum) + old_shift)
    new_factor = torch.exp((new.maximum - maximum) + new_shift)
    numerator, denominator = (
        torch.addcmul(torch.addcmul(new_factor * new_sum, change, old_sum), kept, old_sum)
        for old_sum, new_sum in ((old.numerator, new.numerator), (old.denominator, new.denominator))
    )
    return _Sums(numerator, denominator, maximum)


def _average(sums: _Sums) -> Tensor:
    return sums.numerator / sums.denominator


def _fold(x: Float[Tensor, "batch token channel"], length: int) -> Float[Tensor, "batch chunk position channel"]:
    """Chunks of ``length`` tokens; what fills up the last is never read."""
    filled = torch.cat([x, x.new_zeros(len(x), -x.shape[1] % length, x.shape[2])], dim=1)
    return filled.unflatten(1, (-1, length))


def _running_sums(k: Tensor, v: Tensor, log_decay: Tensor) -> _Sums:
    """Sums inside each chunk before each of its tokens and behind its last, (batch, chunk, position + 1, channel)."""
    empty = torch.zeros_like(k[:, :, 0])
    sums = [_Sums(empty, empty, torch.full_like(empty, EMPTY_MAXIMUM))]
    for one_k, one_v in zip(k.unbind(2), v.unbind(2), strict=True):
        sums.append(_add(sums[-1], _of_token(one_k, one_v), old_shift=log_decay))
    return _Sums(*(torch.stack(tensors, dim=2) for tensors in zip(*sums, strict=True)))
