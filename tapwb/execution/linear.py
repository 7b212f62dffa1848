"""Linear layers, experts, embedding and head whose weights are read at each token's own precision.

The arithmetic is ``y[t] = x[t] @ dequantize(W, bits[t]).T + b``; which kernel does it is decided in
:mod:`tapwb.execution.dispatch`. No layer here ever holds a floating-point copy of its weight.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tapwb.execution import dispatch
from tapwb.execution.bits import Bits, BitsContext
from tapwb.execution.level_correction import LevelCorrection
from tapwb.execution.packed import PackedWeight
from tapwb.quant.nested import NestedTensor


class TokenAdaptiveLinear(nn.Module):
    """A linear layer that multiplies each token by the weight read at that token's level.

    Args:
        packed: The nested weight, shape (out, in).
        bias: Shape (out,), or ``None``.
        context: Source of the levels.
        layer_fraction: Depth of the layer in the model, in [0, 1), for plans with several layer groups.
        fixed_bits: A level that overrides the plan (the head is always read at 8 bits), or ``None``.
        correction: Of the product, depending on the level; from calibration.
        site: Name of the layer in its model, for records of what it was fed.
    """

    def __init__(
        self,
        packed: PackedWeight,
        bias: Tensor | None,
        context: BitsContext,
        *,
        layer_fraction: float = 0.0,
        fixed_bits: int | None = None,
        correction: LevelCorrection | None = None,
        site: str = "",
    ) -> None:
        super().__init__()
        self.packed, self.correction = packed, correction
        self.in_features, self.out_features = packed.cols, packed.rows
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.layer_fraction, self.fixed_bits = layer_fraction, fixed_bits
        self._context, self.site = context, site

    def forward(self, x: Tensor) -> Tensor:
        """Multiply.

        Args:
            x: Shape (..., in).

        Returns:
            Shape (..., out), in the dtype of ``x``.
        """
        rows = x.reshape(-1, self.in_features)
        bits = self.fixed_bits or self._context.for_input(x, self.layer_fraction)
        product = None if self.fixed_bits else self._context.product  # the head's input stays as it comes
        if product is None:
            y = dispatch.linear(rows, self.packed(), bits)
        else:
            y = product(rows, self.packed(), bits, self.site)
        if self.correction is not None:
            y = self.correction(y, bits)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class TokenAdaptiveExperts(nn.Module):
    """A fused mixture of experts: gate and up in one matrix per expert, then down, weighted and summed.

    Each expert sees only the tokens routed to it, so the levels are routed along with the tokens.

    Args:
        gate_up: One nested (2 * intermediate, hidden) matrix per expert.
        down: One nested (hidden, intermediate) matrix per expert.
        activation: The gate's activation.
        context: Source of the levels.
        layer_fraction: Depth of the layer in [0, 1).
        site: Name of the layer in its model.
    """

    def __init__(
        self,
        gate_up: list[PackedWeight],
        down: list[PackedWeight],
        activation: Callable[[Tensor], Tensor],
        context: BitsContext,
        *,
        layer_fraction: float = 0.0,
        site: str = "",
    ) -> None:
        super().__init__()
        self.gate_up, self.down = nn.ModuleList(gate_up), nn.ModuleList(down)
        self.act_fn = activation
        self.layer_fraction = layer_fraction
        self._context, self.site = context, site

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Apply each token's experts.

        Args:
            hidden_states: Shape (row, hidden).
            top_k_index: Chosen experts, shape (row, k).
            top_k_weights: Their weights, shape (row, k).

        Returns:
            Shape (row, hidden).
        """
        levels = self._context.for_input(hidden_states, self.layer_fraction)
        total = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if expert >= len(self.gate_up):  # transformers marks padded routes with the number of experts
                continue
            token, slot = torch.where(top_k_index == expert)
            bits = levels if isinstance(levels, int) else levels[token]
            gate, up = self._multiply(hidden_states[token], self.gate_up[expert](), bits, "gate_up").chunk(2, dim=-1)
            out = self._multiply(self.act_fn(gate) * up, self.down[expert](), bits, "down")
            total.index_add_(0, token, (out * top_k_weights[token, slot, None]).to(total.dtype))
        return total

    def _multiply(self, x: Tensor, weight: NestedTensor, bits: Bits, part: str) -> Tensor:
        product = self._context.product
        return dispatch.linear(x, weight, bits) if product is None else product(x, weight, bits, f"{self.site}.{part}")


class NestedEmbedding(nn.Module):
    """An embedding table stored once, as nested codes, and gathered at 8 bits.

    Args:
        packed: The table, shape (vocabulary, hidden).
        dtype: Dtype of the embeddings.
        scale: Factor some families (Gemma) apply to every embedding.
        padding_idx: Kept for Hugging Face code that asks for it.
    """

    def __init__(
        self, packed: PackedWeight, dtype: torch.dtype, *, scale: float = 1.0, padding_idx: int | None = None
    ) -> None:
        super().__init__()
        self.packed = packed
        self.dtype, self.scale, self.padding_idx = dtype, scale, padding_idx
        self.num_embeddings, self.embedding_dim = packed.rows, packed.cols

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NestedEmbedding":
        """Follow ``.to(dtype)``: the codes have no dtype to change, but the rows that are read from them have."""
        self.dtype = fn(torch.zeros((), dtype=self.dtype)).dtype
        super()._apply(fn, recurse)
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings of token ids, shape (..., hidden)."""
        flat = dispatch.embedding(input_ids.reshape(-1), self.packed()).to(self.dtype)
        # The factor is rounded to the dtype first, as Hugging Face does and the model was trained with.
        scale = torch.tensor(self.scale, dtype=self.dtype, device=flat.device)
        return flat.reshape(*input_ids.shape, self.embedding_dim) * scale


class TiedHead(nn.Module):
    """The output head of a model that shares its table with the embedding.

    It holds a reference, not a sub-module, so that the table is stored, counted and saved once.

    Args:
        embedding: The layer with the table.
        bias: Shape (vocabulary,), or ``None``.
        correction: Of the logits; from calibration.
    """

    def __init__(
        self, embedding: NestedEmbedding, bias: Tensor | None = None, correction: LevelCorrection | None = None
    ) -> None:
        super().__init__()
        self.correction = correction
        object.__setattr__(self, "_embedding", embedding)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.in_features, self.out_features = embedding.embedding_dim, embedding.num_embeddings

    def table(self) -> NestedTensor:
        """The shared table, shape (vocabulary, hidden)."""
        embedding: NestedEmbedding = object.__getattribute__(self, "_embedding")
        nested: NestedTensor = embedding.packed()
        return nested

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (..., vocabulary)."""
        y = dispatch.linear(x.reshape(-1, self.in_features), self.table(), 8)
        if self.correction is not None:
            y = self.correction(y, 8)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.reshape(*x.shape[:-1], self.out_features)
