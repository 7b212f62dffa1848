"""Native steps of whole models give the logits, levels and texts of the PyTorch path, or say why they cannot be had.

Seed features: S1.15
"""

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from tapwb.core.errors import ExecutionError, UnsupportedBits
from tapwb.engine.engine import TAPEngine
from tapwb.execution import dispatch, native_compare, native_step
from tapwb.execution.kv_plan import make_cache
from tapwb.execution.layer_groups import assign_layer_groups
from tapwb.execution.level_correction import LevelCorrection
from tapwb.execution.linear import TokenAdaptiveLinear
from tapwb.execution.native_compare import compare_operations
from tapwb.execution.native_program import SUPPORTED, plan_step
from tapwb.execution.native_step import NativeStepper, ready_for, stepper_for
from tapwb.execution.nest import nest_model
from tapwb.execution.router import LayerRouter, Routing
from tapwb.execution.stepper import TorchStepper
from tapwb.models.tiny import tiny_model
from tapwb.plan.layer_damage import LayerDamage
from tapwb.quant.nested import NestedLayout, layout_for_levels
from tapwb_kernels.native_build import NativeUnavailable
from tapwb_kernels.native_step.program import Attend

#: Logits of both paths: 16-bit activations and sums in another order. What a model may differ by is 1e-3.
ERROR = 5e-4
ROUTED_LEVELS = (3, 4, 5, 6, 8)
FAMILIES = ("llama", "mistral", "qwen2", "gemma3", "phi3", "gpt2")
_SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 20,
    "initializer_range": 0.15,
    "pad_token_id": 0,
}
OTHERS: dict[str, dict[str, Any]] = {
    "qwen3": {"tie_word_embeddings": True},
    "gemma": {"hidden_activation": "gelu_pytorch_tanh"},
    "gemma2": {
        "query_pre_attn_scalar": 20,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "attn_implementation": "eager",
    },
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4}},
}


@pytest.fixture(autouse=True, scope="module")
def library():
    """The library, or the reason there is none."""
    try:
        return native_step.native_library()
    except ExecutionError as error:
        pytest.skip(str(error))


def built(kind, **fields):
    """A random model that the tiny families do not hold, in sizes that fill neither groups nor vectors."""
    attention = fields.pop("attn_implementation", None)
    config = AutoConfig.for_model(kind, **{**_SMALL, **fields})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def nested_of(model, layout="fine", **options):
    """The model's nested handle."""
    return nest_model(model, layout=NestedLayout.named(layout), **options)


def tokens_of(model, n, seed=0):
    """Random tokens."""
    vocabulary = model.get_input_embeddings().num_embeddings
    return torch.randint(0, vocabulary, (n,), generator=torch.Generator().manual_seed(seed))


def whole(model, nested, ids, bits):
    """Logits of one PyTorch pass."""
    with torch.inference_mode(), nested.context.use(bits):
        return model(ids[None], past_key_values=DynamicCache(config=model.config), use_cache=True).logits[0]


def relative(actual, expected):
    """As a share of the norm; NaN is infinite."""
    error = float((actual - expected).norm() / expected.norm())
    return error if error == error else float("inf")


def in_pieces(stepper, ids, bits, sizes=(1, 2, 3, 4, 5, 6, 7, 8, 20)):
    """Logits of steps of these sizes, one after the other, around and around."""
    rows, start, turn = [], 0, itertools.cycle(sizes)
    while start < len(ids):
        size = min(next(turn), len(ids) - start)
        own = bits if isinstance(bits, int) else bits[..., start : start + size]
        rows.append(stepper.advance(ids[start : start + size], own))
        start += size
    return torch.cat(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_native_steps_give_the_logits_of_pytorch(family):
    """Every level and a plan by group and token, steps of 1 to 20 tokens, past every sliding window."""
    model: Any = tiny_model(family).model
    nested, ids = nested_of(model), tokens_of(model, 80)
    n_groups = 2
    mixed = torch.tensor([4, 5, 6, 8])[torch.randint(0, 4, (n_groups, 80), generator=torch.Generator().manual_seed(1))]
    for bits in (8, 6, 5, 4, mixed[0], mixed):
        actual = in_pieces(NativeStepper.from_cache(model, nested), ids, bits)
        assert relative(actual, whole(model, nested, ids, bits)) <= ERROR
    assert relative(whole(model, nested, ids, 4), whole(model, nested, ids, 8)) > 20 * ERROR


@pytest.mark.parametrize("kind", OTHERS)
def test_other_members_of_the_families_are_right_too(kind):
    """Odd head sizes, biases, capped scores and logits, scaled and partial rotations."""
    model: Any = built(kind, **OTHERS[kind])
    nested, ids = nested_of(model), tokens_of(model, 30)
    for bits in (8, 4):
        stepper = NativeStepper.from_cache(model, nested)
        assert relative(in_pieces(stepper, ids, bits), whole(model, nested, ids, bits)) <= ERROR


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_low_levels_and_corrections_of_calibrated_cells_are_read(family):
    """Two bits have their own scale; gains and addends depend on the level, and the head has its own."""
    model: Any = tiny_model(family).model
    nested = nested_of(model, "wide", is_calibrated=True)
    ids, generator = tokens_of(model, 12), torch.Generator().manual_seed(4)
    for module in model.modules():
        if isinstance(module, LevelCorrection):
            for name in ("gain", "bias"):
                table = torch.randn(getattr(module, name).shape, generator=generator) * 0.2
                setattr(module, name, table.half().view(torch.int16))
    for bits in (2, 3, 4, 8):
        stepper = NativeStepper.from_cache(model, nested)
        assert relative(in_pieces(stepper, ids, bits), whole(model, nested, ids, bits)) <= ERROR
    with pytest.raises(UnsupportedBits, match="1 bits cannot be read from these planes"):
        NativeStepper.from_cache(model, nested).advance(ids, 1)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("kv", [16, None], ids=["a 16-bit cache", "the cache of transformers"])
def test_a_stepper_goes_on_where_a_cache_ends_and_can_be_taken_back(family, kv):
    """The prompt by PyTorch, then three guesses that are forgotten, then the rest."""
    model: Any = tiny_model(family).model
    nested, ids = nested_of(model), tokens_of(model, 40)
    cache = DynamicCache(config=model.config) if kv is None else make_cache(model.config, kv)
    torch_way = TorchStepper(model, cache, nested)
    torch_way.advance(ids[:25], 8)
    stepper = NativeStepper.from_cache(model, nested, cache)
    stepper.advance(ids[:3], 4)
    assert stepper.length == 28
    stepper.crop(25)
    actual = in_pieces(stepper, ids[25:], 5)
    assert relative(actual, torch_way.advance(ids[25:], 5)) <= ERROR
    assert stepper.length == torch_way.length == 40
    with pytest.raises(ExecutionError, match="cannot keep 41 of 40 tokens"):
        stepper.crop(41)
    if family == "gemma3":
        with pytest.raises(ExecutionError, match="a sliding window of 16 has forgotten"):
            stepper.crop(20)


def test_routed_steps_choose_the_levels_of_pytorch():
    """The same gates on the same text: levels, means, bytes and logits, step after step, with a keeper at work."""
    model: Any = tiny_model("llama").model
    nested = nest_model(model, layout=layout_for_levels(ROUTED_LEVELS))
    router, ids = random_router(nested), tokens_of(model, 60)
    cache = make_cache(model.config, 16)
    ours, theirs = (Routing(router, 5.0, ROUTED_LEVELS) for _ in range(2))
    for routing in (ours, theirs):
        with torch.inference_mode(), nested.context.use(routing):
            model(ids[None, :40], past_key_values=make_cache(model.config, 16), use_cache=True)
        routing.finish_pass(40)
        routing.begin_answer()
    with torch.inference_mode(), nested.context.use(8):
        model(ids[None, :40], past_key_values=cache, use_cache=True)
    stepper = NativeStepper.from_cache(model, nested, cache, routing=ours)
    n_same, highest = 0, set()
    for index in range(40, 60):
        logits, done = stepper.advance_routed(ids[index : index + 1], ours)
        with torch.inference_mode(), nested.context.use(theirs):
            expected = model(ids[None, index : index + 1], past_key_values=cache, use_cache=True).logits[0]
        other = theirs.finish_pass(1)
        assert torch.equal(done.highest, other.highest)
        assert done.histogram == other.histogram
        assert done.mean_bits == pytest.approx(other.mean_bits)
        assert relative(logits, expected) <= ERROR
        n_same += 1
        highest |= set(done.highest.flatten().tolist())
    assert n_same == 20
    assert len(highest) >= 3


def random_router(nested) -> LayerRouter:
    """Gates of the right shapes, some groups without one."""
    generator = torch.Generator().manual_seed(0)
    groups = assign_layer_groups(nested)
    widths = {}
    for module in nested.model.modules():
        if isinstance(module, TokenAdaptiveLinear) and module.fixed_bits is None:
            widths[int(module.layer_fraction * len(groups) + 1e-6)] = module.in_features
    n = len(groups)
    directions = tuple((0.2 * torch.randn(widths[i] if i % 3 else 0, generator=generator)).half() for i in range(n))
    quantiles = torch.stack([1.2 * torch.randn(200, generator=generator).sort().values for _ in range(n)])
    nats = 0.3 * torch.rand(n, 1, generator=generator, dtype=torch.float64) + 0.01
    names, weights = tuple(group.name for group in groups), tuple(group.n_weights for group in groups)
    layers = LayerDamage(names, weights, (4,), nats, {4: 1.0, 8: 0.01})
    return LayerRouter(directions, 0.1 * torch.randn(n, generator=generator), torch.zeros(n), quantiles, layers)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gemma3"])
def test_every_operation_is_that_of_its_module(family):
    """What each module takes and gives, against the operation that stands for it; a planted fault is found in place."""
    model: Any = tiny_model(family).model
    nested, ids = nested_of(model), tokens_of(model, 7)
    found = compare_operations(model, nested, ids, 5)
    linears = sum(isinstance(module, TokenAdaptiveLinear) for module in model.modules())
    assert sum(each.kind == "Linear" for each in found) >= linears
    assert {"Embed", "Norm", "Attend", "Activate", "Add"} <= {each.kind for each in found}
    assert max(each.error for each in found) <= ERROR
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ExecutionError, match="cannot compare 9 tokens"):
        compare_operations(model, nested, torch.zeros(9, dtype=torch.long), 5)


def test_a_fault_is_found_where_it_is(monkeypatch):
    """Another factor in the attention of the second layer: everything before it agrees, it does not."""
    model: Any = tiny_model("llama").model
    nested, ids = nested_of(model), tokens_of(model, 5)
    plan = plan_step(model)

    def broken(model: Any, routing: Any = None) -> Any:
        ops = [
            dataclasses.replace(op, factor=2 * op.factor) if isinstance(op, Attend) and op.layer == 1 else op
            for op in plan.program.ops
        ]
        return dataclasses.replace(plan, program=dataclasses.replace(plan.program, ops=tuple(ops)))

    monkeypatch.setattr(native_compare, "plan_step", broken)
    wrong = [each for each in compare_operations(model, nested, ids, 8) if each.error > 1e-2]
    assert wrong[0].kind == "Attend"
    assert wrong[0].site == "model.layers.1.self_attn.o_proj:input"
    monkeypatch.setattr(native_step, "plan_step", broken)
    ready = ready_for(model, nested)
    assert ready.program is None
    assert "its logits differ from PyTorch's on this model by" in ready.reason


@pytest.mark.parametrize("family", ["mixtral", "falcon"])
def test_families_without_a_program_say_so(family):
    """And run in PyTorch."""
    model: Any = tiny_model(family).model
    nested = nested_of(model)
    stepper, reason = stepper_for(model, nested, make_cache(model.config, 16))
    assert stepper is None
    assert reason == f"no step program is written for {type(model).__name__}"
    assert type(model).__name__ not in SUPPORTED
    with pytest.raises(ExecutionError, match="no native steps: no step program is written"):
        NativeStepper.from_cache(model, nested)


def test_whatever_is_in_the_way_is_told():
    """Caches, activations, watchers, dtypes, rotations, forced kernels, unnested models."""
    model: Any = tiny_model("llama").model
    assert stepper_for(model, None, None)[1] == "the model runs as it was loaded"
    with pytest.raises(ExecutionError, match="not a nested"):
        plan_step(model)
    nested = nested_of(model)

    def why(kv: Any = 16, of: Any = model, n_tokens: int = 0) -> str:
        cache = make_cache(of.config, kv)
        if n_tokens:
            with torch.inference_mode():
                of(tokens_of(of, n_tokens).repeat(2, 1), past_key_values=cache, use_cache=True)
        return stepper_for(of, nested, cache)[1]

    assert why() == ""
    assert why(8) == "the cache keeps old tokens at fewer than 16 bits"
    assert why(16, model, 3) == "the cache holds several sequences"
    with nested.context.activations(lambda *args: args[0]):
        assert why() == "activations are quantized"
    with dispatch.force("grouped"):
        assert why() == "a kernel was forced by the caller"
    hook = model.model.layers[1].mlp.register_forward_hook(lambda *args: None)
    assert why() == "somebody watches or replaces what model.layers.1.mlp computes"
    hook.remove()
    assert why() == ""
    model.model.rotary_emb.rope_type = "dynamic"
    native_step._ready.pop(model)
    assert why() == "rotations of type 'dynamic' depend on the length of the text"
    assert why(of=model.to(torch.bfloat16)) == "the model runs in bfloat16, the native step in float32"


def test_without_a_compiler_the_reason_is_told_and_pytorch_runs(monkeypatch):
    """As in the trace of a run."""

    def fails(folder):
        raise NativeUnavailable("no C++ compiler on the path (c++). Install one, for example g++")

    monkeypatch.setattr(native_step, "_library", None)
    monkeypatch.setattr(native_step, "load", fails)
    engine = TAPEngine()
    engine.load_model("tiny-random-llama")
    _, trace, _ = engine.trace("ab", 5, precision="8")
    assert len(trace.token_ids) == 5
    assert "no whole step in one call: no native library: no C++ compiler on the path" in trace.kernel.reason


def test_a_model_on_a_card_is_left_there():
    """Nothing is built for it."""
    model: Any = tiny_model("llama").model
    on_card: Any = SimpleNamespace(device=torch.device("cuda", 0))
    assert stepper_for(on_card, nested_of(model), None)[1] == "the model lies on cuda:0; the native step runs on CPUs"


@pytest.mark.parametrize(("several_s", "n_threads"), [(0.5, 2), (0.95, 1), (1.5, 1)])
def test_more_threads_are_used_only_where_they_help(monkeypatch, several_s, n_threads):
    """A tenth of a step must be saved; one thread needs no measurement; slow steps are timed once."""
    ready = ready_for(model := tiny_model("llama").model, nested_of(model))
    assert native_step.threads_that_help(ready.plan, ready.program) == 1
    asked = []

    def seconds(stepper: Any, token: Any) -> float:
        asked.append(stepper.n_threads)
        return several_s if stepper.n_threads == 2 else 1.0

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(native_step, "_seconds", seconds)
    assert native_step.threads_that_help(ready.plan, ready.program) == n_threads
    assert asked == [1, 2] * 7
    monkeypatch.setattr(native_step, "_TIMED_S", 0.0)
    asked.clear()
    assert native_step.threads_that_help(ready.plan, ready.program) == n_threads
    assert asked == [1, 2]


def test_more_positions_than_there_are_are_refused():
    """A model with a table of positions reads no further than it goes."""
    model: Any = built("gpt2", n_positions=10, n_embd=24, n_head=3, n_layer=1)
    nested = nested_of(model)
    stepper = NativeStepper.from_cache(model, nested)
    stepper.advance(tokens_of(model, 9), 8)
    with pytest.raises(ExecutionError, match="cannot read 2 more tokens after 9: the model has 10"):
        stepper.advance(tokens_of(model, 2), 8)
    with pytest.raises(ExecutionError, match="levels for 3 tokens do not fit 1"):
        stepper.advance(tokens_of(model, 1), torch.tensor([4, 5, 6]))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "phi3", "gpt2"])
@pytest.mark.parametrize("precision", ["8", "4", "adaptive:5.5:entropy"])
def test_texts_are_those_of_pytorch(family, precision):
    """Greedy, through the whole engine: the same tokens, levels and bytes; the trace names what ran."""
    engine = TAPEngine()
    engine.load_model(f"tiny-random-{family}", levels=[4, 5, 6, 8])
    _, trace, metrics = engine.trace("The quick brown fox", 40, precision=precision)
    with dispatch.force("native"):
        _, other, _ = engine.trace("The quick brown fox", 40, precision=precision)
    assert trace.token_ids == other.token_ids
    assert trace.token_bits == other.token_bits
    assert trace.weight_bytes_read == other.weight_bytes_read
    assert trace.kernel.name == "native"
    assert "whole step in one call, one thread; the prompt: C++" in trace.kernel.reason
    assert metrics["kernel"]["reason"] == trace.kernel.reason
    assert "whole step" not in other.kernel.reason.split("; no whole step")[0]
    if family in ("llama", "phi3", "gpt2"):
        assert trace.kv_bytes == other.kv_bytes
