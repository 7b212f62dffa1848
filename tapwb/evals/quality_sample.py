"""A short text by the setting under check, and how much of it repeats itself."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import PrecisionRequest
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.engine import TAPEngine, signal_of, stored_levels
from tapwb.engine.measured import ladder_for
from tapwb.engine.steering import level_source
from tapwb.evals.quality_verdict import DEGENERATE_SHARE, SampleCheck
from tapwb.execution.activations import ActivationUse
from tapwb.execution.decode import DecodeSettings, decode
from tapwb.execution.kv_plan import make_cache
from tapwb.execution.sampling import Sampling
from tapwb.metrics.degeneration import repeated_share
from tapwb.plan.precision_plan import uniform_plan

if TYPE_CHECKING:
    from torch import Tensor

    from tapwb.execution.trace import Trace
    from tapwb.models.info import LoadedModel

#: Tokens that are written, and tokens of the user's text they continue.
SAMPLE_TOKENS, PROMPT_TOKENS = 40, 32
#: Below this a text is too short to call it a loop.
_ENOUGH_TOKENS = 16


def sample_check(
    engine: TAPEngine,
    reference: "LoadedModel",
    request: PrecisionRequest,
    token_ids: "Tensor",
    *,
    activations: ActivationUse,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> SampleCheck:
    """Let the setting continue the start of a text, drawn at temperature 1.

    Args:
        engine: With the model loaded.
        reference: The weights as loaded.
        request: The setting.
        token_ids: The user's text, shape (1, token).
        activations: Precision of the activations.
        seed: Seed of the draws.
        progress: Told about every token; one that raises ``Cancelled`` ends the sample with what there is.
    """
    prompt = token_ids[:, :PROMPT_TOKENS]
    text, trace = _write(engine, request, prompt, activations, seed, progress)
    repeated = repeated_share(trace.token_ids)
    at_16: Measured = Unavailable("not needed: the sample does not repeat itself")
    if isinstance(repeated, Reading) and repeated.value >= DEGENERATE_SHARE:
        if len(trace.token_ids) < _ENOUGH_TOKENS:
            at_16 = Unavailable(f"the sample has only {len(trace.token_ids)} tokens")
        else:
            _, other = _write_at_16(engine, reference, prompt, seed, progress)
            at_16 = repeated_share(other.token_ids)
    entropies: Sequence[float] = trace.entropy_nats
    entropy = Reading(sum(entropies) / len(entropies), "nat", "measured:drawn distributions", n=len(entropies))
    return SampleCheck(text, len(trace.token_ids), repeated, at_16, entropy)


def _write(
    engine: TAPEngine,
    request: PrecisionRequest,
    prompt: "Tensor",
    activations: ActivationUse,
    seed: int,
    progress: Progress,
) -> "tuple[str, Trace]":
    if request.kind == "reference":
        raise ValueError("the weights as loaded are the reference and are not checked")
    nested, scored = engine.nested, None
    if request.kind == "uniform":
        plan = uniform_plan(prompt.shape[1], request.bits or 8)
    else:
        scored = engine.score(prompt, signal_of(request), low_bits=min(stored_levels(request)), progress=progress)
        plan = engine.plan(scored, request)
    ladder = ladder_for(engine, request, plan, progress)
    with activations.on(nested.context):
        return decode(
            nested.model,
            _tokenizer(engine),
            prompt,
            _settings(engine, prompt, seed),
            nested=nested,
            prompt_bits=plan.bits.clamp(max=nested.levels[-1]),
            levels=level_source(request, plan, scored, seed),
            ladder=ladder,
            cache=make_cache(nested.model.config, 16),
            progress=progress,
        )


def _write_at_16(
    engine: TAPEngine, reference: "LoadedModel", prompt: "Tensor", seed: int, progress: Progress
) -> "tuple[str, Trace]":
    request = PrecisionRequest("reference", bits=16)
    return decode(
        reference.model,
        reference.tokenizer,
        prompt,
        _settings(engine, prompt, seed),
        nested=None,
        prompt_bits=16,
        levels=level_source(request, None, None, seed),
        cache=make_cache(reference.model.config, 16),
        progress=progress,
    )


def _settings(engine: TAPEngine, prompt: "Tensor", seed: int) -> DecodeSettings:
    room = (engine.anatomy.context_length or 1 << 30) - prompt.shape[1]
    return DecodeSettings(
        max_new_tokens=min(SAMPLE_TOKENS, room),
        sampling=Sampling(temperature=1.0, top_p=0.95, seed=seed),
        eos_ids=frozenset(),  # a text that ends at once says nothing; what follows the end is still the model's
        context_length=engine.anatomy.context_length,
        kv_baseline_bytes=engine.anatomy.kv_bytes,
    )


def _tokenizer(engine: TAPEngine) -> object:
    loaded = engine.loaded
    return loaded.tokenizer if loaded else None
