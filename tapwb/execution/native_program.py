"""A nested Hugging Face model written down as the operations of one decode step.

The walk follows the modules that the model itself runs, and only those whose arithmetic is known to the letter: another
class of model, layer, norm, activation or rotation ends it with the reason, and PyTorch runs the model as before. What
the operations compute is specified in ``tapwb_kernels.native_step.reference``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tapwb.core.errors import ExecutionError
from tapwb.execution.level_correction import LevelCorrection
from tapwb.execution.linear import NestedEmbedding, TiedHead, TokenAdaptiveLinear
from tapwb.execution.router import Routing
from tapwb.quant.nested import NestedTensor
from tapwb_kernels.native_step.memory import Tables
from tapwb_kernels.native_step.program import (
    TOP_LEVEL,
    Activate,
    ActivationName,
    Add,
    Attend,
    Embed,
    Gate,
    Linear,
    Norm,
    Op,
    Position,
    Rope,
    Scale,
    StepProgram,
    StoredWeight,
    View,
)

#: Rotations whose angles do not depend on how long the text has become.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_ACTIVATIONS: dict[str, ActivationName] = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "GELUActivation": "gelu",
    "GELU": "gelu",
    "ReLU": "relu",
}
_PLAIN_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Phi3RMSNorm")
_ONE_PLUS_NORMS = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")


class NotTractable(ExecutionError):
    """A model that no step program is known for; the message says what is in the way."""


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """A step program with what a step needs besides.

    Attributes:
        program: The operations.
        tables: Cosines and sines of the first so many positions.
        fractions: Where each layer group of the program lies in the model, in [0, 1).
        n_calls: Linear layers in each of these groups.
        window: Tokens that the layers with a sliding window see, by layer; 0 is all.
        max_positions: Most tokens that the model has positions for, or ``None``.
        refitted: Levels of 1 and 2 bits that every layer of a plan can be read at.
    """

    program: StepProgram
    tables: Callable[[int], Tables]
    fractions: tuple[float, ...]
    n_calls: tuple[int, ...]
    window: tuple[int, ...]
    max_positions: int | None
    refitted: frozenset[int]


def plan_step(model: Any, routing: Routing | None = None) -> StepPlan:
    """Write down the decode step of a model.

    Args:
        model: A nested causal language model on the CPU, in fp32.
        routing: Gates that decide levels inside the step.

    Raises:
        NotTractable: With the reason, if any part of the model is not known to the letter.
    """
    recipe = _RECIPES.get(type(model).__name__)
    if recipe is None:
        raise NotTractable(f"no step program is written for {type(model).__name__}")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            raise NotTractable(f"somebody watches or replaces what {name or 'the model'} computes")
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.device.type != "cpu":
                raise NotTractable(f"{name} lies on {tensor.device}; the native step runs on CPUs")
    if model.dtype != torch.float32:
        raise NotTractable(f"the model runs in {str(model.dtype).removeprefix('torch.')}, the native step in float32")
    writer = _Writer(model, routing)
    recipe(writer, model)
    return writer.plan()


@dataclass(slots=True, eq=False)
class _Writer:
    """A program as far as it is written; the recipes below say what comes next."""

    model: Any
    routing: Routing | None
    ops: list[Op] = field(default_factory=list)
    tables: list[Callable[[int], tuple[Tensor, Tensor]]] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    window: list[int] = field(default_factory=list)
    max_positions: int | None = None
    _names: dict[int, str] = field(default_factory=dict)
    _groups: dict[float, int] = field(default_factory=dict)
    _calls: dict[int, int] = field(default_factory=dict)
    _gated: set[tuple[int, View]] = field(default_factory=set)
    _logits: View | None = None

    def __post_init__(self) -> None:
        self._names = {id(module): name for name, module in self.model.named_modules()}
        fractions = {m.layer_fraction for m in self.model.modules() if _is_planned(m)}
        self._groups = {fraction: index for index, fraction in enumerate(sorted(fractions))}
        self._calls = dict.fromkeys(range(len(fractions)), 0)

    def name(self, module: nn.Module) -> str:
        return self._names[id(module)]

    def add(self, op: Op) -> None:
        self.ops.append(op)
        written = getattr(op, "y", None)
        if isinstance(written, View):  # what was gated has been overwritten
            self._gated = {(group, view) for group, view in self._gated if view.slot != written.slot}

    def embed(self, embedding: nn.Module) -> View:
        if type(embedding) is not NestedEmbedding:
            raise NotTractable(f"the embedding is a {type(embedding).__name__}, not a nested table")
        table = _stored(embedding.packed(), None, None)
        y = View("hidden", table.cols)
        # The factor is rounded to the dtype first, as the layer does.
        factor = float(torch.tensor(embedding.scale, dtype=torch.float32))
        self.add(Embed(y=y, table=table, factor=factor, site=self.name(embedding)))
        return y

    def norm(self, module: nn.Module, x: View, slot: str, *, n_heads: int = 1) -> View:
        kind, norm = type(module).__name__, cast(Any, module)
        y = View(slot, x.width) if slot != x.slot else x
        site = self.name(module) if n_heads == 1 else ""  # families order the heads of their norms differently
        if kind == "LayerNorm":
            eps, weight, bias = norm.eps, norm.weight, norm.bias
            self.add(Norm(x=x, y=y, weight=weight, bias=bias, eps=eps, is_centred=True, site=site))
        elif kind in _PLAIN_NORMS:
            self.add(Norm(x=x, y=y, weight=norm.weight, eps=norm.variance_epsilon, n_heads=n_heads, site=site))
        elif kind in _ONE_PLUS_NORMS:
            weight = 1.0 + norm.weight.detach().float()
            self.add(Norm(x=x, y=y, weight=weight, eps=norm.eps, n_heads=n_heads, site=site))
        else:
            raise NotTractable(f"{self.name(module)} is a {kind}, which no operation computes")
        return y

    def linear(self, module: nn.Module, x: View, slot: str) -> View:
        if type(module) is not TokenAdaptiveLinear:
            raise NotTractable(f"{self.name(module)} is a {type(module).__name__}, not a nested linear layer")
        weight = _stored(module.packed(), module.bias, module.correction)
        y, group = View(slot, weight.out), 0
        if module.fixed_bits is None:
            group = self._groups[module.layer_fraction]
            self._calls[group] += 1
            self._gate(group, module.layer_fraction, x)
        level = 0 if module.fixed_bits is None else min(module.fixed_bits, TOP_LEVEL)
        self.add(Linear(x=x, y=y, weight=weight, group=group, fixed_level=level, site=self.name(module)))
        return y

    def _gate(self, group: int, fraction: float, x: View) -> None:
        if self.routing is None or (group, x) in self._gated:
            return
        router, cuts = self.routing.router, self.routing.cuts
        own = int(fraction * router.layers.n_groups + 1e-6)
        direction = router.directions[own]
        if direction.numel() and direction.numel() != x.width:
            raise NotTractable(
                f"the gate of {router.layers.names[own]} takes {direction.numel()} numbers, not {x.width}"
            )
        self._gated.add((group, x))
        self.add(
            Gate(
                x=x,
                group=group,
                direction=direction if direction.numel() else None,
                slope=float(router.slopes[own]),
                offset=float(router.offsets[own]),
                cuts=cuts.cuts[own],
                levels=cuts.levels,
                site=f"gate of {router.layers.names[own]}",
            )
        )

    def head(self, head: nn.Module, x: View) -> View:
        if isinstance(head, TiedHead):
            weight, y = _stored(head.table(), head.bias, head.correction), View("logits", head.out_features)
            self.add(Linear(x=x, y=y, weight=weight, fixed_level=TOP_LEVEL, site=self.name(head)))
        else:
            y = self.linear(head, x, "logits")
        self._logits = y
        return y

    def attention(self, heads: "_Heads", q: View, k: View, v: View, project: nn.Module) -> View:
        site = f"{self.name(project)}:input"
        window, layer = heads.window, len(self.memory)
        self.memory.append((heads.n_kv_heads, q.width // heads.n_heads))
        self.window.append(window)
        y = View("mixed", q.width)
        self.add(
            Attend(
                q=q,
                k=k,
                v=v,
                y=y,
                layer=layer,
                n_heads=heads.n_heads,
                n_kv_heads=heads.n_kv_heads,
                factor=heads.scaling,
                window=window,
                softcap=heads.softcap,
                site=site,
            )
        )
        return self.linear(project, y, "attended")

    def activation(self, module: nn.Module, x: View, x2: View | None, next_layer: nn.Module) -> View:
        name = _ACTIVATIONS.get(type(module).__name__)
        if name is None:
            raise NotTractable(f"the activation {type(module).__name__} is no operation")
        y, site = View("inner", x.width), f"{self.name(next_layer)}:input"
        self.add(Activate(x=x, x2=x2, y=y, activation=name, site=site))
        return y

    def plan(self) -> StepPlan:
        if self._logits is None:
            raise NotTractable("the model has no head")
        tables = tuple(self.tables)
        program = StepProgram(tuple(self.ops), len(self._groups), self._logits, tuple(self.memory))
        return StepPlan(
            program,
            lambda n: [table(n) for table in tables],
            tuple(self._groups),
            tuple(self._calls.values()),
            tuple(self.window),
            self.max_positions,
            frozenset.intersection(*(frozenset(op.weight.refit) for op in _planned(self.ops))),
        )


@dataclass(frozen=True, slots=True)
class _Heads:
    """Numbers of one attention."""

    n_heads: int
    n_kv_heads: int
    scaling: float
    window: int = 0
    softcap: float = 0.0


def _llama_like(write: _Writer, model: Any) -> None:
    """Llama, Mistral, Qwen 2 and 3, Phi-3, Gemma 1 to 3: norm, attention, norm, gated feed-forward."""
    body, config = model.model, model.config.get_text_config()
    if getattr(config, "use_bidirectional_attention", False):
        raise NotTractable("the model looks ahead")
    table_of = _rotations(write, body.rotary_emb, config)
    x = write.embed(body.embed_tokens)
    for index, layer in enumerate(body.layers[: config.num_hidden_layers]):
        # Gemma 2 and 3 have a norm behind attention and feed-forward, too, and name the one in between otherwise.
        is_double = hasattr(layer, "pre_feedforward_layernorm")
        attended = _llama_attention(write, layer, x, config, table_of[index])
        if is_double:
            attended = write.norm(layer.post_attention_layernorm, attended, "normed_after")
        second = layer.pre_feedforward_layernorm if is_double else layer.post_attention_layernorm
        write.add(Add(x=x, x2=attended, y=x, site=f"{write.name(second)}:input"))
        fed = _gated_feed_forward(write, layer.mlp, write.norm(second, x, "normed"))
        if is_double:
            fed = write.norm(layer.post_feedforward_layernorm, fed, "normed_after")
        write.add(Add(x=x, x2=fed, y=x, site=write.name(layer)))
    logits = write.head(model.lm_head, write.norm(body.norm, x, "normed"))
    softcap = getattr(config, "final_logit_softcapping", None)
    if softcap:
        write.add(Scale(x=logits, y=logits, softcap=float(softcap)))


def _llama_attention(write: _Writer, layer: Any, x: View, config: Any, table: "_Table") -> View:
    attention = layer.self_attn
    normed = write.norm(layer.input_layernorm, x, "normed")
    dim, n_heads, n_kv_heads = attention.head_dim, config.num_attention_heads, config.num_key_value_heads
    if hasattr(attention, "qkv_proj"):
        joined = write.linear(attention.qkv_proj, normed, "qkv")
        q, rest = joined.part(0, n_heads * dim), joined.part(n_heads * dim, 2 * n_kv_heads * dim)
        k, v = rest.part(0, n_kv_heads * dim), rest.part(n_kv_heads * dim, n_kv_heads * dim)
    else:
        q, k, v = (write.linear(getattr(attention, f"{name}_proj"), normed, name) for name in "qkv")
    if hasattr(attention, "q_norm"):
        q = write.norm(attention.q_norm, q, q.slot, n_heads=n_heads)
        k = write.norm(attention.k_norm, k, k.slot, n_heads=n_kv_heads)
    for view, heads in ((q, n_heads), (k, n_kv_heads)):
        write.add(Rope(y=view, n_heads=heads, rotary_dim=table.rotary_dim, table=table.index))
    window = _window(attention, config)
    # Only this family hands its cap to attention, and only the plain attention heeds it.
    is_capped = type(attention).__name__ == "Gemma2Attention" and config._attn_implementation == "eager"
    softcap = float(config.attn_logit_softcapping or 0.0) if is_capped else 0.0
    heads_of = _Heads(n_heads, n_kv_heads, float(attention.scaling), window, softcap)
    return write.attention(heads_of, q, k, v, attention.o_proj)


def _window(attention: Any, config: Any) -> int:
    """Tokens that a layer sees, itself included; 0 is all."""
    kind = type(attention).__name__
    if kind in ("MistralAttention", "Phi3Attention"):  # one window for all layers
        return int(getattr(config, "sliding_window", None) or 0)
    if kind in ("LlamaAttention", "GemmaAttention"):
        return 0
    return int(attention.sliding_window or 0)


def _gated_feed_forward(write: _Writer, mlp: Any, x: View) -> View:
    if hasattr(mlp, "gate_up_proj"):
        joined = write.linear(mlp.gate_up_proj, x, "gate_up")
        gate, up = joined.part(0, joined.width // 2), joined.part(joined.width // 2, joined.width // 2)
        inner = write.activation(mlp.activation_fn, gate, up, mlp.down_proj)
    else:
        gate, up = write.linear(mlp.gate_proj, x, "gate"), write.linear(mlp.up_proj, x, "up")
        inner = write.activation(mlp.act_fn, gate, up, mlp.down_proj)
    return write.linear(mlp.down_proj, inner, "fed")


def _gpt2(write: _Writer, model: Any) -> None:
    """GPT-2: learned positions, layer norms, joined projections, a plain feed-forward."""
    body, config = model.transformer, model.config
    if config.add_cross_attention or config.reorder_and_upcast_attn:
        raise NotTractable("GPT-2 with cross attention or reordered attention is not written down")
    x = write.embed(body.wte)
    write.add(Position(x=x, y=x, table=body.wpe.weight))
    write.max_positions = int(body.wpe.num_embeddings)
    for block in body.h:
        joined = write.linear(block.attn.c_attn, write.norm(block.ln_1, x, "normed"), "qkv")
        q, k, v = (joined.part(part * x.width, x.width) for part in range(3))
        heads = _Heads(block.attn.num_heads, block.attn.num_heads, float(block.attn.scaling))
        attended = write.attention(heads, q, k, v, block.attn.c_proj)
        write.add(Add(x=x, x2=attended, y=x, site=f"{write.name(block.ln_2)}:input"))
        inner = write.linear(block.mlp.c_fc, write.norm(block.ln_2, x, "normed"), "up")
        inner = write.activation(block.mlp.act, inner, None, block.mlp.c_proj)
        write.add(Add(x=x, x2=write.linear(block.mlp.c_proj, inner, "fed"), y=x, site=write.name(block)))
    write.head(model.lm_head, write.norm(body.ln_f, x, "normed"))


_RECIPES: dict[str, Callable[[_Writer, Any], None]] = {
    **dict.fromkeys(
        (
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "Qwen2ForCausalLM",
            "Qwen3ForCausalLM",
            "Phi3ForCausalLM",
            "GemmaForCausalLM",
            "Gemma2ForCausalLM",
            "Gemma3ForCausalLM",
        ),
        _llama_like,
    ),
    "GPT2LMHeadModel": _gpt2,
}
SUPPORTED = tuple(_RECIPES)
"""Classes of models that a step program is written for."""


@dataclass(frozen=True, slots=True)
class _Table:
    """Which table of cosines and sines a layer turns by."""

    index: int
    rotary_dim: int


def _rotations(write: _Writer, rotary: Any, config: Any) -> Sequence[_Table]:
    """The table of each layer; asked of the model's own module, so that every scaling is right."""
    by_kind = rotary.rope_type if isinstance(rotary.rope_type, dict) else {None: rotary.rope_type}
    found: dict[Any, _Table] = {}
    for kind, rope_type in by_kind.items():
        if rope_type not in _ROPE_TYPES:
            raise NotTractable(f"rotations of type {rope_type!r} depend on the length of the text")
        extra = {} if kind is None else {"layer_type": kind}

        def table(n: int, extra: dict[str, Any] = extra) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n dim"]]:
            with torch.inference_mode():
                cosine, sine = rotary(torch.zeros(1), torch.arange(n)[None], **extra)
            return cosine[0], sine[0]

        found[kind] = _Table(len(write.tables), int(table(1)[0].shape[-1]))
        write.tables.append(table)
    kinds = config.layer_types if None not in by_kind else [None] * config.num_hidden_layers
    return [found[kind] for kind in kinds]


def _planned(ops: Sequence[Op]) -> list[Linear]:
    found = [op for op in ops if isinstance(op, Linear) and not op.fixed_level]
    if not found:
        raise NotTractable("no layer of the model is read at a planned level")
    return found


def _is_planned(module: nn.Module) -> bool:
    return isinstance(module, TokenAdaptiveLinear) and module.fixed_bits is None


def _stored(nested: NestedTensor, bias: Tensor | None, correction: LevelCorrection | None) -> StoredWeight:
    return StoredWeight(
        planes=nested.planes,
        plane_bits=nested.layout.plane_bits,
        group_min=nested.group_min,
        group_step=nested.group_step,
        refit=nested.refit,
        cols=nested.shape[1],
        correction={} if correction is None else _corrections(correction),
        bias=None if bias is None else bias.detach(),
    )


def _corrections(correction: LevelCorrection) -> dict[int, tuple[Tensor, Tensor]]:
    """Gain and addend by level; a level above the highest known takes that one's."""
    gain, addend = (cast(Tensor, t).view(torch.float16) for t in (correction.gain, correction.bias))
    rows = {level: index for index, level in enumerate(correction.levels)}
    asked = {level: min(level, correction.levels[-1]) for level in range(1, TOP_LEVEL + 1)}
    return {level: (gain[rows[own]], addend[rows[own]]) for level, own in asked.items() if own in rows}
