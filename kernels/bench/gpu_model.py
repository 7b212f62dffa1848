"""A Llama-shaped decoder with a static cache, whose weights are dense or nested: one step is one CUDA graph.

Made from a transformers model of random weights, and held to that model's logits before anything is timed. All arms of
the suite but transformers' own run this very code, so that only the weights differ between them.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import alone  # noqa: F401 - makes the imports below work
import torch
import torch.nn.functional as F
from torch import Tensor

from tapwb_kernels import ops
from tapwb_kernels.layout import n_groups

GROUP = 128
PLANES = (4, 4)
DENSE_ROWS = 64
"""From so many rows on, a product is arithmetic: the weight is made into floats once."""


class Linear(Protocol):
    """Anything that multiplies rows."""

    def __call__(self, x: Tensor, bits: int) -> Tensor:
        """Rows (row, in) times the weight at a level."""

    def nbytes(self) -> int:
        """Bytes that stay in memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A weight as it is; every level reads it whole.

    Attributes:
        weight: Shape (out, in).
    """

    weight: Tensor

    def __call__(self, x: Tensor, bits: int) -> Tensor:
        """Shape (row, out)."""
        return F.linear(x, self.weight)

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the weight."""
        return self.weight[index]

    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.weight.numel() * self.weight.element_size()


class Nested:
    """A weight as 8-bit cells cut into planes of 4 + 4 bits.

    Args:
        weight: Shape (out, in); not kept.
        group: Columns that share a minimum and a step.
    """

    def __init__(self, weight: Tensor, group: int = GROUP) -> None:
        rows, self._cols = weight.shape
        self._dtype = weight.dtype
        groups = n_groups(self._cols, group)
        cells = F.pad(weight.float(), (0, groups * group - self._cols)).view(rows, groups, group)
        low, high = cells.amin(-1), cells.amax(-1)
        self._step = ((high - low) / 255).clamp(min=1e-7).half()
        self._min = (low - self._step.float() / 2).half()
        codes = (cells - self._min.float()[..., None]).div_(self._step.float()[..., None])
        self._planes = ops.nested_pack(codes.floor_().clamp_(0, 255).to(torch.uint8), list(PLANES))

    def __call__(self, x: Tensor, bits: int) -> Tensor:
        """Shape (row, out)."""
        if x.shape[0] < DENSE_ROWS:
            return ops.nested_linear(x, self._planes, list(PLANES), self._min, self._step, bits)
        return F.linear(x, self.dense(bits, x.dtype))

    def rows(self, index: Tensor) -> Tensor:
        """Some rows at 8 bits, in the dtype the weight had."""
        planes = [plane[index] for plane in self._planes]
        return _dequantize(planes, self._min[index], self._step[index], 8, self._cols, self._dtype)

    def dense(self, bits: int, dtype: torch.dtype) -> Tensor:
        """The whole weight at a level."""
        return _dequantize(self._planes, self._min, self._step, bits, self._cols, dtype)

    def nbytes(self) -> int:
        """Bytes of planes, minimum and step."""
        return sum(t.numel() * t.element_size() for t in (*self._planes, self._min, self._step))

    def bytes_read(self, bits: int) -> int:
        """Bytes that a product at a level reads of it."""
        planes = self._planes[: 1 if bits <= PLANES[0] else 2]
        return sum(t.numel() * t.element_size() for t in (*planes, self._min, self._step))


def _dequantize(planes: Any, low: Tensor, step: Tensor, bits: int, cols: int, dtype: torch.dtype) -> Tensor:
    if low.is_cuda:
        from tapwb_kernels.nested_dequantize.triton import nested_dequantize
    else:
        from tapwb_kernels.nested_dequantize.blocked import nested_dequantize
    return nested_dequantize(planes, PLANES, low, step, bits, cols, dtype)


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: queries, keys and values in one weight, gate and up in another."""

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    norms: tuple[Tensor, Tensor]


class StaticDecoder:
    """A decoder for one sequence with room for a fixed number of tokens.

    Args:
        model: A ``LlamaForCausalLM`` or ``MistralForCausalLM``.
        make: Makes a product from a weight, for example ``Dense`` or ``Nested``.
        room: Tokens of the cache.
    """

    def __init__(self, model: Any, make: Callable[[Tensor], Any], room: int) -> None:
        config, body = model.config, model.model
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.channels = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        self.layers = []
        for layer in body.layers:
            attention, mlp = layer.self_attn, layer.mlp
            qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
            gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
            norms = (layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach())
            weights = (qkv, attention.o_proj.weight, gate_up, mlp.down_proj.weight)
            self.layers.append(Layer(*(make(weight.detach()) for weight in weights), norms))
        self.norm = body.norm.weight.detach()
        self.head, self.embedding = make(model.lm_head.weight.detach()), make(body.embed_tokens.weight.detach())
        self._rotary, self._vocabulary = body.rotary_emb, config.vocab_size
        self._allocate(room)

    def with_room(self, room: int) -> "StaticDecoder":
        """The same weights with a cache of its own.

        Args:
            room: Tokens of the cache.
        """
        other = copy.copy(self)
        other._allocate(room)
        return other

    def _allocate(self, room: int) -> None:
        device, dtype = self.norm.device, self.norm.dtype
        self.room, self._places = room, torch.arange(room, device=device)
        # The model's own table, so that every scaling of positions is right.
        turns = self._rotary(self.norm[None, None], self._places[None])
        self.cos, self.sin = (part[0].to(dtype) for part in turns)
        shape = (len(self.layers), 2, 1, self.kv_heads, room, self.channels)
        self.cache = torch.zeros(shape, dtype=dtype, device=device)
        self.token = torch.zeros(1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.logits = torch.zeros(self._vocabulary, dtype=torch.float32, device=device)

    def weight_bytes(self) -> int:
        """Bytes of all weights that stay in memory."""
        products = [p for layer in self.layers for p in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        return sum(product.nbytes() for product in (*products, self.head, self.embedding))

    @torch.no_grad()
    def step(self, bits: int) -> None:
        """One token: reads ``token`` and ``position``, writes ``logits``, the next token and the next position.

        Args:
            bits: Level of all layers; the head is read at 8 bits.
        """
        hidden = self._layers(self.embedding.rows(self.token), self.position, bits)
        self.logits.copy_(self.head(hidden, 8)[0])
        self.token.copy_(self.logits.argmax().view(1))
        self.position.add_(1)

    @torch.no_grad()
    def prefill(self, tokens: Tensor, bits: int) -> None:
        """All tokens of a prompt at once, from an empty cache.

        Args:
            tokens: Shape (token,).
            bits: Level of all layers.
        """
        hidden = self._layers(self.embedding.rows(tokens), self._places[: len(tokens)], bits)
        self.logits.copy_(self.head(hidden[-1:], 8)[0])
        self.token.copy_(self.logits.argmax().view(1))
        self.position.fill_(len(tokens))

    def _layers(self, hidden: Tensor, positions: Tensor, bits: int) -> Tensor:
        for index, layer in enumerate(self.layers):
            normed = F.rms_norm(hidden, hidden.shape[-1:], layer.norms[0], self.eps)
            attended = self._attend(index, layer.qkv(normed, bits), positions)
            hidden = hidden + layer.out(attended, bits)
            normed = F.rms_norm(hidden, hidden.shape[-1:], layer.norms[1], self.eps)
            gate, up = layer.gate_up(normed, bits).chunk(2, -1)
            hidden = hidden + layer.down(F.silu(gate) * up, bits)
        return F.rms_norm(hidden, hidden.shape[-1:], self.norm, self.eps)

    def _attend(self, index: int, qkv: Tensor, positions: Tensor) -> Tensor:
        n, widths = qkv.shape[0], [self.heads, self.kv_heads, self.kv_heads]
        q, k, v = qkv.view(1, n, -1, self.channels).transpose(1, 2).split(widths, 1)
        cos, sin = self.cos[positions], self.sin[positions]
        q, k = q * cos + _turned(q) * sin, k * cos + _turned(k) * sin
        keys, values = self.cache[index]
        keys.index_copy_(2, positions, k)
        values.index_copy_(2, positions, v)
        shared, scale = self.heads != self.kv_heads, 1 / math.sqrt(self.channels)
        if n > 1:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=shared)
        else:
            mask = (self._places <= positions)[None, None, None]
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale, enable_gqa=shared)
        return y.transpose(1, 2).reshape(n, -1)


def _turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def random_model(family: str, shape: dict[str, int], dtype: torch.dtype, device: str) -> Any:
    """A transformers model with random weights, built in place.

    Args:
        family: ``"llama"`` or ``"mistral"``.
        shape: Fields of its configuration.
        dtype: Of the weights.
        device: Where.
    """
    import transformers

    names = {"llama": ("LlamaConfig", "LlamaForCausalLM"), "mistral": ("MistralConfig", "MistralForCausalLM")}
    config_of, model_of = (getattr(transformers, name) for name in names[family])
    extra = {"sliding_window": None} if family == "mistral" else {}
    config = config_of(**shape, **extra, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = model_of(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()
