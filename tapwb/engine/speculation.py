"""Speculation of an engine's runs: whether it can be had, who guesses, and what it brought."""

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tapwb.core.errors import ExecutionError, UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import PrecisionRequest
from tapwb.core.speculation_spec import SpeculationRequest, parse_speculation
from tapwb.engine.config import TAPConfig
from tapwb.engine.machine import read_model

if TYPE_CHECKING:
    from torch import Tensor

    from tapwb.execution.decode import DecodeSettings
    from tapwb.execution.nest import NestedModel
    from tapwb.execution.speculative.depth import Costs, DepthPolicy
    from tapwb.execution.speculative.records import SpeculationRecord
    from tapwb.execution.speculative.run import Guesser, OnRound
    from tapwb.execution.trace import Trace
    from tapwb.models.info import LoadedModel
    from tapwb.plan.overrides import EditedPlan


class Subject(Protocol):
    """What is needed of an engine."""

    config: TAPConfig

    @property
    def loaded(self) -> "LoadedModel | None":
        """The loaded model."""

    @property
    def nested(self) -> "NestedModel":
        """The nested weights."""


class _Drafts:
    """The draft model of each engine, loaded once; gone with its engine."""

    def __init__(self) -> None:
        self._held: weakref.WeakKeyDictionary[Any, tuple[str, LoadedModel, NestedModel]] = weakref.WeakKeyDictionary()

    def of(self, engine: Subject, model_id: str, progress: Progress) -> "tuple[LoadedModel, NestedModel]":
        """A draft model at 8 bits."""
        from tapwb.execution.nest import nest_model
        from tapwb.quant.nested import layout_for_levels

        held = self._held.get(engine)
        if held is None or held[0] != model_id:
            self._held.pop(engine, None)  # two drafts at once may be more than the machine holds
            handle = read_model(model_id, engine.config, {}, progress)
            packed = getattr(handle.model, "tap", None)  # a packed checkpoint is nested already
            nested = packed or nest_model(handle.model, layout=layout_for_levels((8,)), progress=progress)
            held = self._held[engine] = (model_id, handle, nested)
        return held[1:]


_drafts = _Drafts()


@dataclass(slots=True)
class Speculating:
    """The speculation of one run.

    Attributes:
        request: Who is to guess.
        bits: Level of the target; 16 stands for the weights as they were loaded.
        guesser: Who guesses; ``None`` if nothing is guessed.
        depth: Guesses a round; ``None`` lets the machine's own clock decide.
        record: What was guessed, after the run.
    """

    request: SpeculationRequest
    bits: int
    guesser: "Guesser | None" = None
    depth: "DepthPolicy | None" = None
    record: "SpeculationRecord | None" = None

    @property
    def is_on(self) -> bool:
        """Whether anything is guessed."""
        return self.guesser is not None

    @property
    def levels(self) -> set[int]:
        """Levels the weights must be readable at for it, beside those of the run."""
        return set(self.request.levels)

    def writer(
        self, handle: "LoadedModel", on_round: "OnRound | None" = None
    ) -> "Callable[..., tuple[str, Trace]] | None":
        """What writes the answer in place of :func:`tapwb.execution.decode.decode`; ``None`` if nothing is guessed.

        Args:
            handle: The target as it is run.
            on_round: Told about every round.
        """
        return functools.partial(self._write, self.guesser, handle, on_round) if self.guesser else None

    def _write(
        self,
        guesser: "Guesser",
        handle: "LoadedModel",
        on_round: "OnRound | None",
        token_ids: "Tensor",
        settings: "DecodeSettings",
        **options: Any,
    ) -> "tuple[str, Trace]":
        from tapwb.execution.speculative.depth import DepthController
        from tapwb.execution.speculative.run import speculate

        text, trace, self.record = speculate(
            handle.model,
            handle.tokenizer,
            token_ids,
            settings,
            guesser=guesser,
            depth=self.depth or DepthController(costs=_costs_of(handle.model, f"{guesser.name} at {self.bits}")),
            bits=self.bits,
            on_round=on_round,
            **options,
        )
        return text, trace

    def metrics(self) -> dict[str, Any]:
        """What the run's metrics hold of it."""
        from tapwb.metrics.speculation import speculation_metrics

        return {} if self.record is None else {"speculation": speculation_metrics(self.record)}


#: By model: what guesses and verifications took in earlier answers, by guesser.
_costs: "weakref.WeakKeyDictionary[Any, dict[str, Costs]]" = weakref.WeakKeyDictionary()


def _costs_of(model: Any, name: str) -> "Costs":
    from tapwb.execution.speculative.depth import Costs

    return _costs.setdefault(model, {}).setdefault(name, Costs())


def speculating(
    engine: Subject,
    speculate: str,
    request: PrecisionRequest,
    kv: str | int | None,
    settings: "DecodeSettings",
    token_ids: "Tensor",
    *,
    edited: "EditedPlan | None" = None,
    depth: "DepthPolicy | None" = None,
    progress: Progress = NO_PROGRESS,
) -> Speculating:
    """What a run is to guess, if that goes with everything else that was asked for.

    Args:
        engine: With the target loaded.
        speculate: ``"off"``, ``"self"``, ``"self:LEVEL"``, ``"ngram"`` or ``"draft:ID"``.
        request: Precision of the run.
        kv: Precision of the cache; ``None`` takes the configured one.
        settings: What is to be generated.
        token_ids: The prompt, shape (1, token).
        edited: A plan that was edited by hand, if there is one.
        depth: Guesses a round; ``None`` lets the machine's own clock decide.
        progress: Told about the draft model's loading.

    Raises:
        UsageError: If it does not go together; says what to give instead.
        ModelError: If the draft model cannot be loaded.
    """
    asked = parse_speculation(speculate)
    if asked.kind == "off":
        return Speculating(asked, request.bits or 0)
    check_request(asked, request, is_edited=edited is not None)
    config = engine.config
    bits = str((config.kv_bits or (8 if config.memory_efficient_mode else 16)) if kv is None else kv)
    if bits != "16":
        raise UsageError(
            f"speculation takes guesses back from the cache, and one of {bits} bits cannot give them back exactly. "
            "Give the cache 16 bits (--kv 16), or speculate off."
        )
    if config.activations != "16":
        raise UsageError(
            f"speculation verifies several tokens in one pass, and activations {config.activations} are rounded by "
            "what is in the pass. Use activations 16, or speculate off."
        )
    target_bits = request.bits or 8
    guesser = guesser_for(engine, asked, target_bits, settings, token_ids.shape[1], progress)
    return Speculating(asked, target_bits, guesser, depth)


def check_request(asked: SpeculationRequest, request: PrecisionRequest, *, is_edited: bool = False) -> None:
    """Refuse a precision that speculation cannot verify at.

    Args:
        asked: Who is to guess.
        request: Precision of the run.
        is_edited: Whether the plan was edited by hand.

    Raises:
        UsageError: If levels differ from token to token, or the guesses would be no cheaper than the target.
    """
    if request.kind not in ("uniform", "reference") or is_edited:
        planned = "an edited plan" if is_edited else str(request)
        raise UsageError(
            f"speculation {asked} verifies all tokens at one level, and {planned} gives them different ones. Choose "
            "precision 8, 6, 5, 4 or 16, or speculate off."
        )
    if asked.kind != "self" or asked.low_bits is None:
        return
    if request.kind == "reference":
        raise UsageError(
            "speculation self guesses with the low bits of nested weights, and 16 bits are the weights as they were "
            "loaded. Choose precision 8, or speculate ngram."
        )
    if request.bits is not None and asked.low_bits >= request.bits:
        raise UsageError(
            f"speculation {asked} guesses at {asked.low_bits} bits what precision {request} verifies: draft and target "
            f"would be the same. Choose a precision above {asked.low_bits}, or a lower level for the guesses."
        )


def guesser_for(
    engine: Subject,
    asked: SpeculationRequest,
    bits: int,
    settings: "DecodeSettings",
    n_prompt: int,
    progress: Progress,
) -> "Guesser":
    """Who guesses; loads the draft model where one is named.

    Args:
        engine: With the target loaded.
        asked: Who is to guess.
        bits: Level of the target.
        settings: What is to be generated.
        n_prompt: Tokens of the prompt.
        progress: Where to report.

    Raises:
        ExecutionError: If no model is loaded.
        UsageError: If the draft model has another tokenizer, too short a context, or is the target itself.
    """
    from tapwb.execution.speculative.propose import check_draft
    from tapwb.execution.speculative.run import Guesser

    if asked.kind != "draft" or asked.model_id is None:
        return Guesser("none" if asked.kind == "off" else asked.kind, str(asked), asked.low_bits or 16)
    if (target := engine.loaded) is None:
        raise ExecutionError("no model is loaded. Call load_model('smollm2-135m') first.")
    handle, nested = _drafts.of(engine, asked.model_id, progress)
    if handle.info.checksum_sha256 == target.info.checksum_sha256 and bits <= 8:
        raise UsageError(
            f"draft model {asked.model_id} is the target itself: no guess would be cheaper than the answer. Name a "
            "smaller model of the same tokenizer, or use self:4."
        )
    check_draft(target.tokenizer.get_vocab(), handle.tokenizer.get_vocab(), asked.model_id)
    limit, needed = handle.anatomy.context_length, n_prompt + settings.max_new_tokens
    if limit is not None and needed > limit:
        raise UsageError(
            f"draft model {asked.model_id} sees {limit} tokens, and prompt and answer are {needed}. Ask for fewer new "
            "tokens, or use self."
        )
    return Guesser("draft", str(asked), 8, handle.model, nested)
