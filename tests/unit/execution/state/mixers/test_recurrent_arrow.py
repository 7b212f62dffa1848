"""Recurrent and hybrid families go through load, score, plan, run, speculate, save and load.

Seed features: S1.19, S1.20, S1.21, S1.22
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tapwb.engine import TAPConfig, TAPEngine
from tapwb.execution import dispatch
from tapwb.execution.packed import PackedWeight
from tapwb.execution.speculative.caches import retractable_cache
from tapwb.execution.state.mixers.rwkv4 import undo_rescaling
from tapwb.execution.stepper import TorchStepper
from tapwb.models.info import LoadedModel
from tapwb.models.quiet import without_progress_bars
from tapwb.quant.nested import quantize_nested

PROMPT = "Light bends around stars: we saw it in 1919"
TOLERANCE = 1e-4


@dataclass
class Case:
    """A nested tiny model."""

    family: str
    handle: LoadedModel
    engine: TAPEngine
    ids: torch.Tensor


@pytest.fixture
def case(family, loaded) -> Case:
    """One engine per family."""
    handle = loaded(family)
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.adopt(handle)
    return Case(family, handle, engine, engine.tokenize(PROMPT))


def _read(weight: torch.Tensor, bits: int) -> torch.Tensor:
    group_size = min(64, -(-weight.shape[1] // 8) * 8)
    return quantize_nested(weight.detach(), group_size=group_size, layout="fine").dequantize(bits)


def _dequantized(model: Any, bits: int) -> Any:
    """The untouched model of transformers with the weights of one level written into it."""
    if model.config.model_type == "rwkv":
        undo_rescaling(model)  # by powers of two, which are exact, but cells of a divided weight are others
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                module.weight.copy_(_read(module.weight, bits))
            elif isinstance(getattr(module, "gate_up_proj", None), torch.nn.Parameter):
                for weight in (*module.gate_up_proj, *module.down_proj):
                    weight.copy_(_read(weight.clone(), bits))
        tied = head.weight is embedding.weight
        embedding.weight.copy_(_read(embedding.weight, 8))
        if not tied:
            head.weight.copy_(_read(head.weight, 8))
    return model


@torch.no_grad()
def test_every_level_has_the_logits_of_the_dequantized_weights(case, original, far):
    """Against transformers' own layers, which know neither planes nor our recurrences."""
    for bits in (8, 5, 4):
        with case.engine.nested.context.use(bits):
            ours = case.handle.model(case.ids).logits
        reference = _dequantized(original(case.family), bits)(case.ids, use_cache=False).logits
        assert far(ours, reference) < TOLERANCE


@torch.no_grad()
def test_mixed_levels_have_the_logits_of_the_specification(case, far):
    """Every token at another level: the fast path and the row-by-row reference agree."""
    bits = torch.tensor([8, 4, 6, 5])[torch.arange(case.ids.shape[1]) % 4]
    with case.engine.nested.context.use(bits):
        with dispatch.force("grouped"):
            fast = case.handle.model(case.ids).logits
        with dispatch.force("reference"):
            slow = case.handle.model(case.ids).logits
    assert far(fast, slow) < TOLERANCE
    with case.engine.nested.context.use(4), dispatch.force("grouped"):
        assert far(case.handle.model(case.ids).logits, fast) > 100 * TOLERANCE


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
    first, second = case.handle.model.state_dict(), again.state_dict()
    assert list(first) == list(second)
    assert sum(isinstance(m, PackedWeight) for m in again.modules()) > 3
    assert all(torch.equal(first[name], second[name]) for name in first)
    bits = plan.bits[0]
    with torch.no_grad(), again.tap.context.use(bits), case.engine.nested.context.use(bits):
        assert torch.equal(again(case.ids).logits, case.handle.model(case.ids).logits)


def test_states_are_counted_beside_keys_and_values(case):
    """In a run and in what it is compared with; what a state adds is in both."""
    states = case.handle.anatomy.state_bytes()
    if case.family != "nemotron_h":  # without an adapter, its anatomy comes from a pass without memory
        assert states > 0
    _, trace, metrics = case.engine.trace(PROMPT, 4, precision="8")
    memory = metrics["memory"]
    n_cached = case.ids.shape[1] + len(trace.step_s)
    assert memory["baseline_kv_bytes"] == case.handle.anatomy.kv_bytes(n_cached) + states
    assert memory["kv_bytes"] - case.handle.anatomy.kv_bytes(n_cached) >= 0.7 * states


def test_why_steps_run_in_pytorch_is_said(case):
    """No step program is written for these families."""
    _, metrics = case.engine.generate(PROMPT, 3, precision="8")
    assert metrics["kernel"]["name"] != "native" or "no whole step" in metrics["kernel"]["reason"]
    assert type(case.handle.model).__name__ in metrics["kernel"]["reason"]


@pytest.mark.parametrize("kv", ["4", "adaptive:4", "adaptive:4:received"])
def test_every_precision_of_the_cache_goes_with_states(case, kv):
    """Keys and values are narrowed where there are any, and a note says what is not."""
    long = f"{PROMPT}. " * 8
    _, wide = case.engine.generate(long, 3, precision="8", kv="16")
    _, narrow = case.engine.generate(long, 3, precision="8", kv=kv)
    attends = any(cache.window is None for cache in case.handle.anatomy.caches)
    assert (narrow["memory"]["kv_bytes"] < wide["memory"]["kv_bytes"]) == attends
    assert any("keep a state" in note and "fp32" in note for note in narrow["notes"])


def test_the_reference_runs_with_its_own_weights(original, loaded):
    """At 16 bits, through the same loop."""
    from tapwb.execution.decode import decode
    from tapwb.execution.kv_plan import make_cache
    from tapwb.execution.levels import FixedLevel

    for family in ("mamba", "recurrent_gemma", "rwkv"):
        handle = loaded(family)
        engine = TAPEngine(TAPConfig(time_reference=False))
        engine.adopt(loaded(family))
        ids = engine.tokenize(PROMPT)
        settings = engine.decode_settings(6, engine_sampling())
        cache = make_cache(handle.model.config, 16)
        levels = FixedLevel(16)
        _, trace = decode(
            handle.model, handle.tokenizer, ids, settings, nested=None, prompt_bits=16, levels=levels, cache=cache
        )
        expected = ids
        model = original(family)
        for token in trace.token_ids:
            best = model(expected, use_cache=False).logits[0, -1]
            assert best.max() - best[token] < 1e-3
            expected = torch.cat([expected, torch.tensor([[token]])], dim=1)


def engine_sampling() -> Any:
    """Greedy."""
    from tapwb.execution.sampling import Sampling

    return Sampling()


# --- chunks, turns and speculation against one token after the other ---


def _prompts(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    sizes = torch.randint(9, 40, (n,), generator=generator).tolist()
    return [torch.randint(3, 257, (size,), generator=generator) for size in sizes]


def _answer(stepper: TorchStepper, logits: torch.Tensor, n_tokens: int) -> list[int]:
    """Greedy, token by token."""
    answer = [int(logits.argmax())]
    while len(answer) < n_tokens:
        answer.append(int(stepper.advance(torch.tensor(answer[-1:]), 8)[-1].argmax()))
    return answer


def _stepper(case: Case) -> TorchStepper:
    return TorchStepper(case.handle.model, retractable_cache(case.handle.model.config), case.engine.nested)


def _by_tokens(case: Case, prompt: Sequence[int], n_tokens: int) -> list[int]:
    stepper = _stepper(case)
    for token in prompt:
        logits = stepper.advance(torch.tensor([token]), 8)[-1]
    return _answer(stepper, logits, n_tokens)


def _by_chunks(case: Case, prompt: Sequence[int], n_tokens: int) -> list[int]:
    stepper = _stepper(case)
    for start in range(0, len(prompt), 7):
        logits = stepper.advance(torch.tensor(prompt[start : start + 7]), 8)[-1]
    return _answer(stepper, logits, n_tokens)


def _second_turn(case: Case, prompt: Sequence[int], n_tokens: int) -> tuple[list[int], list[int]]:
    """A second question in the cache of the first, and the whole conversation token by token."""
    stepper = _stepper(case)
    first = _answer(stepper, stepper.advance(torch.tensor(prompt), 8)[-1], n_tokens)
    question = [first[-1], *reversed(prompt)]
    found = _answer(stepper, stepper.advance(torch.tensor(question), 8)[-1], n_tokens)
    return found, _by_tokens(case, [*prompt, *first[:-1], *question], n_tokens)


def _by_speculation(case: Case, prompt: torch.Tensor, n_tokens: int, kind: str) -> list[int]:
    from tapwb.execution.speculative.depth import FixedDepth
    from tapwb.execution.speculative.run import Guesser, speculate

    settings = case.engine.decode_settings(n_tokens, engine_sampling())
    guesser = Guesser(kind, kind, 4)
    model, tokenizer = case.handle.model, case.handle.tokenizer
    nested = case.engine.nested
    _, trace, _ = speculate(
        model, tokenizer, prompt[None], settings, nested=nested, guesser=guesser, depth=FixedDepth(3), bits=8
    )
    return list(trace.token_ids)


def _begins(expected: list[int], found: list[int]) -> bool:
    return found == expected[: len(found)]


def _hold(case: Case, prompts: list[torch.Tensor], n_tokens: int) -> None:
    with dispatch.force("grouped"):  # kernels that round long prompts and not short ones would differ by that alone
        for prompt in prompts:
            expected = _by_tokens(case, prompt.tolist(), n_tokens)
            assert _begins(expected, _by_chunks(case, prompt.tolist(), n_tokens))
            found, whole = _second_turn(case, prompt.tolist(), n_tokens // 2)
            assert found == whole
            for kind in ("self", "ngram"):
                found = _by_speculation(case, prompt, n_tokens, kind)  # ends at an end token
                assert len(found) == n_tokens or found[-1] in case.engine.decode_settings(1, engine_sampling()).eos_ids
                assert _begins(expected, found)


def test_chunks_turns_and_guesses_write_what_single_tokens_write(case):
    """Greedy tokens, on one prompt."""
    _hold(case, [_prompts(1)[0][:17]], 6)


@pytest.mark.minutes
def test_chunks_turns_and_guesses_write_what_single_tokens_write_on_twenty_prompts(case):
    """The same, as the acceptance asks for it."""
    _hold(case, _prompts(20), 16)


def test_speculation_of_the_engine_leaves_the_answer_as_it_is(case):
    """With the depth that the machine's clock chooses; steps run in PyTorch and say so."""
    _, trace, metrics = case.engine.trace(PROMPT, 24, precision="8", speculate="self:4")
    _, plain, _ = case.engine.trace(PROMPT, 24, precision="8")
    assert trace.token_ids == plain.token_ids
    assert metrics["speculation"]["drafted"] > 0
    assert "steps in PyTorch" in metrics["kernel"]["reason"]


@pytest.mark.parametrize("family_of_folder", ["mamba", "rwkv"])
def test_a_folder_runs_from_the_command_line(family_of_folder, folder, capsys, monkeypatch, tmp_path):
    """``tapwb run`` and ``tapwb tokens``, the timed reference included."""
    from tapwb.views.cli.main import main

    monkeypatch.setenv("TAPWB_RUNS_DIR", str(tmp_path / "runs"))
    path = str(folder(family_of_folder))
    for words, expected in (
        (["run", "--prompt", "Hello there", "--max-new-tokens", "4", "--precision", "6"], '"baseline_kv_bytes"'),
        (["tokens", "--text", "Hello there", "-s", "state_write"], '"state_write"'),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--model", path, "--json"])
        captured = capsys.readouterr()
        assert not stop.value.code, captured.err
        assert expected in captured.out
