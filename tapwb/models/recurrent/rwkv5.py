"""Matrix-valued state of RWKV-5 "Eagle" (Peng et al. 2024, arXiv:2404.05892).

``y = r (S + diag(u) k^T v)``, ``S = diag(w) S + k^T v``: every key channel has a fixed decay of its own, and the
current token is read with a bonus before it is written.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tapwb.models.recurrent.channel_decay import bonus_chunked, bonus_step
from tapwb.models.recurrent.form import RecurrentForm, State, StateSpec, TokenInputs, check_tokens


@dataclass(frozen=True, slots=True, eq=False)
class RWKV5Inputs(TokenInputs):
    """What an RWKV-5 layer gives its state.

    Attributes:
        r: Receptance: what is read, shape (batch, token, head, key).
        k: Keys.
        v: Values, shape (batch, token, head, value).
        log_decay: Logarithm of w, never positive, shape (head, key): every channel has one rate for all tokens.
        bonus: u, the weight of the current token, shape (head, key).
    """

    r: Float[Tensor, "batch token head key"]
    k: Float[Tensor, "batch token head key"]
    v: Float[Tensor, "batch token head value"]
    log_decay: Float[Tensor, "head key"]
    bonus: Float[Tensor, "head key"]

    PER_TOKEN: ClassVar[tuple[str, ...]] = ("r", "k", "v")
    WRITTEN: ClassVar[tuple[str, ...]] = ("k", "v")


@dataclass(frozen=True, slots=True)
class RWKV5(RecurrentForm[RWKV5Inputs]):
    """The state of one layer.

    Attributes:
        heads: Heads.
        key_size: Size of a key.
        value_size: Size of a value.
    """

    heads: int
    key_size: int
    value_size: int

    def state_spec(self) -> tuple[StateSpec, ...]:
        """One tensor, ``"wkv"``, of shape (head, key, value)."""
        shape = (self.heads, self.key_size, self.value_size)
        return (StateSpec("wkv", ("head", "key", "value"), shape, "sum of k^T v, decayed by key channel"),)

    def step(self, inputs: RWKV5Inputs, state: State) -> tuple[Float[Tensor, "batch token head value"], State]:
        """See :meth:`RecurrentForm.step`."""
        check_tokens(inputs, single=True)
        r, k, v = inputs.r[:, 0], inputs.k[:, 0], inputs.v[:, 0]
        out, wkv = bonus_step(r, k, v, inputs.log_decay, inputs.bonus, state["wkv"])
        return out.unsqueeze(1), {"wkv": wkv}

    def chunk(self, inputs: RWKV5Inputs, state: State) -> tuple[Float[Tensor, "batch token head value"], State]:
        """See :meth:`RecurrentForm.chunk`."""
        check_tokens(inputs)
        log_decay = inputs.log_decay.expand(1, inputs.n_tokens, *inputs.log_decay.shape)
        out, wkv = bonus_chunked(inputs.r, inputs.k, inputs.v, log_decay, inputs.bonus, state["wkv"])
        return out, {"wkv": wkv}
