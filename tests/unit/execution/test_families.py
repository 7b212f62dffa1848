"""Eight families go through load, score, plan, run, save and load with the logits of their dequantized weights.

Seed features: S1.14, S1.15, S1.18
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tapwb.engine import TAPConfig, TAPEngine
from tapwb.execution import dispatch
from tapwb.execution.kv_plan import make_cache
from tapwb.execution.packed import PackedWeight
from tapwb.models.info import LoadedModel
from tapwb.models.quiet import without_progress_bars
from tapwb.models.tiny import tiny_model
from tapwb.quant.nested import quantize_nested

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "gemma3": ("gemma3", {}),
    "mistral": ("mistral", {}),
    "mixtral": ("mixtral", {}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),
    "falcon-old": ("falcon", {}),
    "falcon-new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
}
PROMPT = "Light bends around stars: we saw it in 1919"
TOLERANCE = 1e-4


@dataclass
class Case:
    """A nested tiny model, and how to build the original again."""

    family: str
    overrides: dict[str, Any]
    handle: LoadedModel
    engine: TAPEngine
    ids: torch.Tensor


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request) -> Case:
    """One engine per family."""
    family, overrides = FAMILIES[request.param]
    handle = tiny_model(family, **overrides)
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.adopt(handle)
    return Case(family, overrides, handle, engine, engine.tokenize(PROMPT))


def _dequantized(case: Case, bits: int) -> Any:
    """Reference path A: the untouched Hugging Face model with the weights of one level written into it."""
    model: Any = tiny_model(case.family, **case.overrides).model
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        for module in model.modules():
            if module is embedding or module is head:
                continue
            if type(module).__name__ == "Conv1D":
                module.weight.copy_(_read(module.weight.T.contiguous(), bits).T)
            elif isinstance(module, torch.nn.Linear):
                module.weight.copy_(_read(module.weight, bits))
            elif isinstance(getattr(module, "gate_up_proj", None), torch.nn.Parameter):
                for weight in (*module.gate_up_proj, *module.down_proj):
                    weight.copy_(_read(weight.clone(), bits))
        tied = head.weight is embedding.weight
        embedding.weight.copy_(_read(embedding.weight, 8))
        if not tied:
            head.weight.copy_(_read(head.weight, 8))
    return model


def _read(weight: torch.Tensor, bits: int) -> torch.Tensor:
    return quantize_nested(weight.detach(), group_size=64, layout="fine").dequantize(bits)


@torch.no_grad()
def test_every_level_has_the_logits_of_the_dequantized_weights(case):
    """Against the original model, whose code knows nothing of planes; head and embedding stay at 8."""
    for bits in (8, 6, 5, 4):
        with case.engine.nested.context.use(bits):
            ours = case.handle.model(case.ids).logits
        reference = _dequantized(case, bits)(case.ids).logits
        assert torch.isfinite(ours).all()
        assert (ours - reference).abs().max() < TOLERANCE


@torch.no_grad()
def test_mixed_levels_have_the_logits_of_the_specification(case):
    """Every token at another level: the fast path and the row-by-row reference agree."""
    bits = torch.tensor([8, 4, 6, 5])[torch.arange(case.ids.shape[1]) % 4]
    with case.engine.nested.context.use(bits):
        fast = case.handle.model(case.ids).logits
        with dispatch.force("reference"):
            slow = case.handle.model(case.ids).logits
    assert (fast - slow).abs().max() < TOLERANCE
    with case.engine.nested.context.use(4):
        assert (fast - case.handle.model(case.ids).logits).abs().max() > 100 * TOLERANCE


def test_the_whole_arrow_runs_and_the_packed_checkpoint_is_bit_exact(case, tmp_path):
    """Score, plan, run; save and load again: same planes, same logits, and it still runs at other levels."""
    scored = case.engine.score(PROMPT, "entropy")
    plan = case.engine.plan(scored, "adaptive:5.5:entropy")
    assert abs(plan.mean_bits - 5.5) <= 3 / case.ids.shape[1]
    text, metrics = case.engine.generate(PROMPT, 4, precision="adaptive:5.5:entropy")
    assert isinstance(text, str)
    assert metrics["memory"]["weights_bytes"] < metrics["memory"]["baseline_weights_bytes"]
    with without_progress_bars():
        case.handle.model.save_pretrained(tmp_path)
        again: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    first, second = dict(case.handle.model.named_buffers()), dict(again.named_buffers())
    packed = [name for name in first if "plane_" in name or "group_range" in name]
    assert len(packed) >= 2 * sum(isinstance(m, PackedWeight) for m in again.modules()) > 0
    assert all(torch.equal(first[name], second[name]) for name in packed)
    bits = plan.bits[0]
    with torch.no_grad(), again.tap.context.use(bits), case.engine.nested.context.use(bits):
        assert torch.equal(again(case.ids).logits, case.handle.model(case.ids).logits)


def test_our_decode_loop_picks_the_tokens_of_hugging_face_generate(case):
    """Greedy, uniform 8 bits, the same cache: the same tokens."""
    _, trace, _ = case.engine.trace(PROMPT, 10, precision="8")
    model: Any = case.handle.model
    theirs = model.generate(
        case.ids,
        attention_mask=torch.ones_like(case.ids),
        max_new_tokens=10,
        do_sample=False,
        past_key_values=make_cache(model.config, 16),
    )
    assert tuple(theirs[0, case.ids.shape[1] :].tolist()) == trace.token_ids
