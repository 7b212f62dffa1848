"""The frame that all RWKV versions share: embedding, blocks, head, and the state that goes in and comes out.

A version (``v4.py``, ``v5.py``, ``v7.py``) gives two modules per block, the time mix and the channel mix. Parameters
carry the names of the published checkpoints. Everything that can be done for all tokens at once is; only the wkv
recurrence itself is a loop over tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tapwb.core.errors import EmptyPrompt
from tapwb.models.rwkv.state import LayerState, RwkvState


@dataclass(frozen=True, slots=True)
class RwkvSizes:
    """The sizes of a model.

    Attributes:
        vocabulary: Tokens.
        width: Size of the embedding.
        layers: Blocks.
        feed_forward: Inner size of the channel mix.
        heads: Heads of the time mix; RWKV-4 has none and leaves 1.
        ranks: Inner sizes of RWKV-7's low-rank maps: ``{"w": 64, "a": 64, "v": 32, "g": 128}``.
    """

    vocabulary: int
    width: int
    layers: int
    feed_forward: int
    heads: int = 1
    ranks: dict[str, int] = field(default_factory=dict)

    @property
    def head_size(self) -> int:
        """Channels of one head."""
        return self.width // self.heads


class TimeMix(nn.Module, ABC):
    """The part of a block that looks back: projections around a recurrence."""

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "batch token width"],
        before: Float[Tensor, "batch token width"],
        wkv: Float[Tensor, "batch ..."],
        first_value: Float[Tensor, "batch token width"] | None,
    ) -> tuple[
        Float[Tensor, "batch token width"], Float[Tensor, "batch ..."], Float[Tensor, "batch token width"] | None
    ]:
        """Output, new memory, and the first layer's values for the layers above.

        Args:
            x: Normalised input.
            before: The same, one token earlier.
            wkv: Memory before the first token.
            first_value: Values of layer 0 (only RWKV-7 has and uses them); ``None`` in layer 0.
        """

    @abstractmethod
    def init_wkv(self, batch: int) -> Float[Tensor, "batch ..."]:
        """The memory of an empty sequence."""


class Block(nn.Module):
    """Time mix and channel mix, each behind a layer norm and added to the stream.

    Args:
        width: Size of the stream.
        att: The time mix; named as in the checkpoints.
        ffn: The channel mix, called with its input and the same one token earlier.
        first: Whether this is layer 0, which also normalises the embedding.
    """

    def __init__(self, width: int, att: TimeMix, ffn: nn.Module, *, first: bool) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(width) if first else nn.Identity()
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.att = att
        self.ffn = ffn

    def forward(
        self,
        x: Float[Tensor, "batch token width"],
        state: LayerState,
        first_value: Float[Tensor, "batch token width"] | None,
    ) -> tuple[Float[Tensor, "batch token width"], LayerState, Float[Tensor, "batch token width"] | None]:
        """Output, new state, and the first layer's values."""
        x = self.ln0(x)
        timed = self.ln1(x)
        mixed, wkv, first_value = self.att(timed, one_earlier(timed, state.time_shift), state.wkv, first_value)
        x = x + mixed
        channelled = self.ln2(x)
        x = x + self.ffn(channelled, one_earlier(channelled, state.channel_shift))
        # Clones: a view of the last token would keep the activations of the whole sequence.
        return x, LayerState(timed[:, -1].clone(), channelled[:, -1].clone(), wkv), first_value


class RwkvModel(nn.Module):
    """A language model with a state of one size instead of a cache that grows.

    Args:
        version: ``"4"``, ``"5.2"`` or ``"7"``.
        sizes: Its sizes.
        blocks: One per layer.
    """

    def __init__(self, version: str, sizes: RwkvSizes, blocks: list[Block]) -> None:
        super().__init__()
        self.version = version
        self.sizes = sizes
        self.emb = nn.Embedding(sizes.vocabulary, sizes.width)
        self.blocks = nn.ModuleList(blocks)
        self.ln_out = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)

    def init_state(self, batch: int = 1) -> RwkvState:
        """The state of ``batch`` empty sequences, on the device and in the type of the weights."""
        zeros = self.emb.weight.new_zeros
        shape = batch, self.sizes.width
        return RwkvState(
            tuple(LayerState(zeros(shape), zeros(shape), block.att.init_wkv(batch)) for block in self._blocks())
        )

    def forward(
        self, token_ids: Int[Tensor, "batch token"], state: RwkvState | None = None
    ) -> tuple[Float[Tensor, "batch token vocabulary"], RwkvState]:
        """Logits after every token, and the state after the last.

        Args:
            token_ids: At least one token per sequence.
            state: What came before; ``None`` begins new sequences.

        Raises:
            EmptyPrompt: If there is no token.
        """
        if token_ids.shape[1] == 0:
            raise EmptyPrompt("there is no token to process; at least one is needed. Give a text.")
        if state is None:
            state = self.init_state(token_ids.shape[0])
        x, first_value, layers = self.emb(token_ids), None, []
        for block, before in zip(self._blocks(), state.layers, strict=True):
            x, after, first_value = block(x, before, first_value)
            layers.append(after)
        return self.head(self.ln_out(x)), RwkvState(tuple(layers))

    def step(
        self, token_ids: Int[Tensor, " batch"], state: RwkvState
    ) -> tuple[Float[Tensor, "batch vocabulary"], RwkvState]:
        """Logits and state after one more token of each sequence."""
        logits, state = self(token_ids[:, None], state)
        return logits[:, 0], state

    def _blocks(self) -> Iterable[Block]:
        return cast(Iterable[Block], self.blocks)


def one_earlier(
    x: Float[Tensor, "batch token width"], last: Float[Tensor, "batch width"]
) -> Float[Tensor, "batch token width"]:
    """Token shift: each token gets its predecessor, the first one the last of the sequence before (``last``)."""
    return torch.cat((last[:, None], x[:, :-1]), dim=1)
