"""The whole arrow in one object: load, score, plan, run, measure.

:class:`TAPEngine` is the public face that the source documents describe: their snippets run with only the import (and
the model id) changed. It connects the stages and computes nothing itself; every stage is also public on its own.
"""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tapwb.core.errors import Cancelled, ExecutionError, SettingsError
from tapwb.core.heap import trim_heap
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import DEFAULT_SIGNAL, PrecisionRequest
from tapwb.engine.activations import activations_in
from tapwb.engine.best import settle
from tapwb.engine.by_hand import check_groups, prompt_plan, request_of
from tapwb.engine.cells import cells_for
from tapwb.engine.config import TAPConfig, signal_of, stored_levels
from tapwb.engine.machine import baseline_memory, check_same_weights, end_token_ids, held_bytes, read_model, room_bytes
from tapwb.engine.measured import measured_for, run_ladder
from tapwb.engine.notes import notes_for
from tapwb.engine.pace import TIMED_TOKENS, time_reference
from tapwb.engine.plain_writer import plain_writer
from tapwb.engine.scored import Scored
from tapwb.engine.speculation import speculating

if TYPE_CHECKING:
    from torch import Tensor

    from tapwb.execution.decode import DecodeSettings
    from tapwb.execution.nest import NestedModel
    from tapwb.execution.sampling import Sampling
    from tapwb.execution.speculative.run import OnRound
    from tapwb.execution.trace import TokenEvent, Trace
    from tapwb.metrics.run_metrics import ReferencePace
    from tapwb.models.anatomy import ModelAnatomy
    from tapwb.models.info import LoadedModel
    from tapwb.plan.overrides import EditedPlan
    from tapwb.plan.precision_plan import PrecisionPlan


@dataclass(slots=True)
class _Loaded:
    """What an engine holds once a model is loaded."""

    model_id: str
    options: dict[str, Any]
    handle: "LoadedModel"
    nested: "NestedModel | None" = None
    reference: "LoadedModel | None" = None
    pace: "ReferencePace | None" = None
    device_map: dict[str, Any] = field(default_factory=dict)


class TAPEngine:
    """Load a model once; score, plan, generate and measure at any precision.

    Args:
        config: Defaults; see :class:`TAPConfig`.
        progress: Where long steps report when a call names nothing else.
    """

    def __init__(self, config: TAPConfig | None = None, *, progress: Progress = NO_PROGRESS) -> None:
        self.config = config or TAPConfig()
        self._progress = progress
        self._loaded: _Loaded | None = None

    # --- model ---

    def load_model(
        self,
        model_id: str,
        *,
        levels: Sequence[int] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> "LoadedModel":
        """Load a model and keep one nested copy of its weights.

        Args:
            model_id: Catalog name, folder, GGUF file or Hugging Face id.
            levels: Bit-widths the copy must be readable at, beside the configured ones.
            progress: Where to report.
            **options: Passed to :func:`tapwb.models.load.load_model` (``revision``, ``allow_pickle``, ...).

        Raises:
            ModelError: If the model cannot be found, fetched or accepted.
            CapacityError: If there is no room for it.
        """
        report = progress or self._progress
        self.close()
        handle = read_model(model_id, self.config, options, report)
        self._take(_Loaded(model_id, options, handle), levels or (), report)
        return handle

    def adopt(self, handle: "LoadedModel", *, levels: Sequence[int] = (), progress: Progress | None = None) -> None:
        """Work on a model that is already loaded; its weights become nested in place.

        Args:
            handle: From :func:`tapwb.models.load.load_model`.
            levels: Bit-widths the copy must be readable at, beside the configured ones.
            progress: Where to report.
        """
        self.close()
        self._take(_Loaded(handle.info.id, {}, handle), levels, progress or self._progress)

    @property
    def loaded(self) -> "LoadedModel | None":
        """The loaded model, or ``None``."""
        return self._loaded.handle if self._loaded else None

    @property
    def nested(self) -> "NestedModel":
        """The nested weights.

        Raises:
            ExecutionError: If no model is loaded.
        """
        if (nested := self._need().nested) is None:
            raise ExecutionError("the model holds no nested weights. Load it again.")
        return nested

    @property
    def anatomy(self) -> "ModelAnatomy":
        """Shapes and bytes of the loaded model.

        Raises:
            ExecutionError: If no model is loaded.
        """
        return self._need().handle.anatomy

    def weights_bytes(self) -> int:
        """Bytes of the nested model, counted on its tensors."""
        return self.nested.weights_bytes()

    def close(self) -> None:
        """Let go of the model and of the reference; their memory is free when this returns."""
        if self._loaded is None:
            return
        self._loaded = None
        gc.collect()  # a model and its handle know each other, and would wait for the next collection
        trim_heap()

    # --- stages ---

    def tokenize(self, text: str) -> "Tensor":
        """Token ids of a text, without special tokens added, shape (1, token).

        Raises:
            EmptyPrompt: If the text holds no token.
        """
        from tapwb.execution.scoring import tokenize

        return tokenize(self._need().handle, text)

    def score(
        self,
        text: "str | Tensor",
        signals: Sequence[str] | dict[str, float] | str | None = None,
        *,
        low_bits: int | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> Scored:
        """Score the tokens of a text.

        Args:
            text: A text, or token ids of shape (1, token).
            signals: Names, or weights by name; by default the configured ones.
            low_bits: Level of the low pass that some signals need; by default the lowest stored one.
            seed: Seed of random signals.
            progress: Where to report.

        Raises:
            UnknownName: If a signal does not exist.
            EmptyPrompt: If the text holds no token.
            PromptTooLong: If it exceeds the model's context.
        """
        from tapwb.execution.scoring import collect_facts
        from tapwb.importance.analyzer import TokenImportanceAnalyzer

        started = time.perf_counter()
        loaded = self._need()
        token_ids = self.tokenize(text) if isinstance(text, str) else text
        chosen = signals or self.config.signals or DEFAULT_SIGNAL
        analyzer = TokenImportanceAnalyzer(
            [chosen] if isinstance(chosen, str) else chosen, seed=self.config.seed if seed is None else seed
        )
        facts = collect_facts(
            loaded.handle,
            self.nested,
            token_ids,
            analyzer.needs,
            low_bits=low_bits,
            progress=progress or self._progress,
        )
        importance = analyzer.analyze(facts)
        return Scored(
            token_ids, facts.token_texts[0], importance, dict(analyzer.weights), facts, time.perf_counter() - started
        )

    def plan(self, scored: Scored, precision: PrecisionRequest | str | None = None) -> "PrecisionPlan":
        """Choose the bits of every token of a scored text.

        Args:
            scored: From :meth:`score`, with the signal that the request names.
            precision: What to aim for; by default the configured mode.

        Raises:
            PlanError: If no plan meets the request.
        """
        from tapwb.plan.request import make_plan

        request = self._request(precision)
        known = measured_for(self, request, scored, self._progress)
        return make_plan(request, scored.importance, facts=scored.facts, seed=self.config.seed, **known)

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 200,
        *,
        precision: "PrecisionRequest | EditedPlan | str | None" = None,
        kv: str | int | None = None,
        speculate: str = "off",
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        on_token: "Callable[[TokenEvent], None] | None" = None,
        on_round: "OnRound | None" = None,
        progress: Progress | None = None,
    ) -> tuple[str, dict[str, Any]]:
        """Generate an answer and say what it took.

        Args:
            prompt: The text to continue.
            max_new_tokens: Largest length of the answer.
            precision: Precision of the weights (grammar: :mod:`tapwb.core.precision`), or a plan of the prompt that was
                edited by hand; by default the configured one.
            kv: Precision of the cache: 16, 8, 4, 3, 2, ``"adaptive:MEAN"`` (by the prompt's scores) or
                ``"adaptive:MEAN:received"`` (by received attention); by default the configured one.
            speculate: Who guesses tokens for one pass to verify (grammar: :mod:`tapwb.core.speculation_spec`).
            temperature: 0 is greedy.
            top_p: Share of the probability kept when sampling.
            seed: Seed of sampling; by default the configured one.
            on_token: Told about each token as soon as it is known.
            on_round: Told about each round of guesses, with the record so far.
            progress: Where to report.

        Returns:
            The answer, and metrics: ``precision``, ``memory``, ``speed``, ``energy``, ``speculation``,
            ``finish_reason``, ``kernel``, ``activations``, ``notes``. Values that could not be measured are
            :class:`~tapwb.core.reading.Unavailable`.

        Raises:
            EmptyPrompt: If the prompt holds no token.
            PromptTooLong: If prompt and answer exceed the context.
            UsageError: If speculation does not go with the rest.
        """
        text, _, metrics = self.trace(
            prompt,
            max_new_tokens,
            precision=precision,
            kv=kv,
            speculate=speculate,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            on_token=on_token,
            on_round=on_round,
            progress=progress,
        )
        return text, metrics

    def trace(
        self,
        prompt: str,
        max_new_tokens: int = 200,
        *,
        precision: "PrecisionRequest | EditedPlan | str | None" = None,
        kv: str | int | None = None,
        speculate: str = "off",
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        on_token: "Callable[[TokenEvent], None] | None" = None,
        on_round: "OnRound | None" = None,
        progress: Progress | None = None,
    ) -> "tuple[str, Trace, dict[str, Any]]":
        """As :meth:`generate`, with the trace between text and metrics."""
        from tapwb.execution.decode import check_prompt
        from tapwb.execution.sampling import Sampling
        from tapwb.metrics.run_metrics import run_metrics, work_of
        from tapwb.monitors.energy import EnergyMonitor

        report = progress or self._progress
        request = self._request(precision)
        sampling = Sampling(temperature, top_p, seed=self.config.seed if seed is None else seed)
        token_ids = self.tokenize(prompt)
        settings = self.decode_settings(max_new_tokens, sampling)
        check_prompt(token_ids.shape[1], settings)
        edited = None if precision is None or isinstance(precision, str | PrecisionRequest) else precision
        guesses = speculating(self, speculate, request, kv, settings, token_ids, edited=edited, progress=report)
        self._ensure_levels(guesses.levels, report)
        scored, plan = self._plan_prompt(token_ids, request, kv, report, edited)
        loaded = self._need()
        anatomy, nested = loaded.handle.anatomy, None if plan is None else self.nested
        handle = self.reference(report) if plan is None else loaded.handle
        ladder, cache = run_ladder(self, request, plan, edited, report), self._cache(handle, kv, scored)
        with EnergyMonitor(device=handle.device) as monitor, activations_in(nested, self.config) as fed:
            plain = plain_writer(self, handle, request, plan, scored, self.config.seed, ladder=ladder, cache=cache)
            text, trace = (guesses.writer(handle, on_round) or plain)(
                token_ids,
                settings,
                nested=nested,
                on_token=on_token,
                progress=report,
                notes=notes_for(request, scored.importance if scored else None, fed.request),
            )
            work = work_of(trace, anatomy)
            monitor.add_work(bytes_moved=work.bytes_moved, operations=work.operations)
        self._keep_pace(trace, plan is None and not guesses.is_on, token_ids, report)
        metrics = run_metrics(
            trace,
            anatomy=anatomy,
            weights_bytes=held_bytes(handle),
            energy=monitor.reading,
            pace=loaded.pace,
            scoring_s=scored.elapsed_s if scored else 0.0,
            device=handle.device,
            request=str(request),
        ) | {"activations": fed.to_json(), **guesses.metrics()}
        return text, trace, metrics

    def reference(self, progress: Progress | None = None, *, dtype: str | None = None) -> "LoadedModel":
        """The model with its weights as they were loaded, for comparisons; loaded on first use.

        In memory-efficient mode it is let go again after every use.

        Args:
            progress: Where to report.
            dtype: What the weights are kept in; 16 bits (bf16) by default, which is what results call "16 bits".
        """
        loaded = self._need()
        wanted = dtype or "bfloat16"
        if loaded.reference is None or loaded.reference.dtype != wanted:
            loaded.reference = None
            loaded.reference = self._load_again(loaded, progress or self._progress, dtype=wanted)
        return loaded.reference

    def release_reference(self) -> None:
        """Let go of the reference weights."""
        self._need().reference = None

    # --- inside ---

    def _take(self, loaded: _Loaded, levels: Sequence[int], report: Progress) -> None:
        self._nest(loaded, {*stored_levels(self.config.request()), *levels}, report)
        self._loaded = loaded

    def _need(self) -> _Loaded:
        if self._loaded is None:
            raise ExecutionError("no model is loaded. Call load_model('smollm2-135m') first.")
        return self._loaded

    def _load_again(self, loaded: _Loaded, report: Progress, **changes: Any) -> "LoadedModel":
        """The same weights a second time."""
        handle = read_model(loaded.model_id, self.config, {**loaded.options, **changes}, report)
        check_same_weights(loaded.handle, handle)
        return handle

    def _nest(self, loaded: _Loaded, levels: set[int], report: Progress) -> None:
        from tapwb.core.settings import cache_dir
        from tapwb.execution import hf_quantizer  # noqa: F401 - what is saved from here on can be loaded again
        from tapwb.execution.nest import nest_model
        from tapwb.execution.offload import folder_for, spread_over_devices
        from tapwb.quant.nested import layout_for_levels

        already = getattr(loaded.handle.model, "tap", None)
        if already is not None and levels <= set(already.levels):
            loaded.nested = already
            return
        loaded.nested = nest_model(
            loaded.handle.model,
            layout=layout_for_levels(tuple(sorted(levels))),
            group_size=self.config.group_size,
            cells=cells_for(loaded.handle, self.config.cells, self.config.group_size, report),
            dtype=loaded.handle.dtype,
            progress=report,
        )
        if self.config.offload_to_cpu:
            loaded.device_map = spread_over_devices(
                loaded.handle.model,
                max_memory_bytes=room_bytes(loaded.handle.device, self.config.max_memory_bytes),
                offload_folder=folder_for(loaded.handle.model, cache_dir() / "offload"),
            )

    def _ensure_levels(self, levels: set[int], report: Progress) -> None:
        """Make sure the nested copy can be read at ``levels``; re-reads the weights if it cannot."""
        loaded = self._need()
        if levels <= set(self.nested.levels):
            return
        wanted = levels | set(self.nested.levels)
        handle = self._load_again(loaded, report)
        again = _Loaded(loaded.model_id, loaded.options, handle, reference=loaded.reference, pace=loaded.pace)
        # The old copy stays until the new one is complete: a cancelled call leaves a working engine.
        self._nest(again, wanted, report)
        self._loaded = again

    def _request(self, precision: "PrecisionRequest | EditedPlan | str | None") -> PrecisionRequest:
        return settle(self, self.config.request() if precision is None else request_of(precision))

    def decode_settings(self, max_new_tokens: int, sampling: "Sampling") -> "DecodeSettings":
        """What to generate with the loaded model, its end tokens and context included.

        Raises:
            SettingsError: If no token is asked for.
        """
        from tapwb.execution.decode import DecodeSettings

        if max_new_tokens < 1:
            raise SettingsError(f"{max_new_tokens} new tokens were asked for. Ask for at least 1.")
        handle = self._need().handle
        return DecodeSettings(
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            eos_ids=end_token_ids(handle),
            context_length=handle.anatomy.context_length,
            kv_baseline_bytes=baseline_memory(handle.anatomy),
        )

    def _keep_pace(self, trace: "Trace", is_reference: bool, token_ids: "Tensor", report: Progress) -> None:
        """Remember how fast the 16-bit weights are; times a few steps of theirs if they have not run yet."""
        from tapwb.metrics.run_metrics import ReferencePace

        loaded = self._need()
        if is_reference:
            loaded.pace = ReferencePace.of(trace) or loaded.pace
        elif loaded.pace is None and self.config.time_reference and trace.finish_reason != "cancelled":
            with suppress(Cancelled):  # the answer is there; only the comparison is given up
                loaded.pace = self._time_reference(token_ids, report)
        if self.config.memory_efficient_mode:
            loaded.reference = None

    def _time_reference(self, token_ids: "Tensor", report: Progress) -> "ReferencePace | None":
        """Time a few steps of the 16-bit weights on the same prompt: what savings are compared with."""
        from tapwb.execution.sampling import Sampling

        room = (self.anatomy.context_length or 1 << 30) - token_ids.shape[1]
        handle = self.reference(report)
        settings = self.decode_settings(max(1, min(TIMED_TOKENS, room)), Sampling())
        return time_reference(handle, token_ids, settings, self._cache(handle, 16, None), report)

    def _plan_prompt(
        self,
        token_ids: "Tensor",
        request: PrecisionRequest,
        kv: str | int | None,
        report: Progress,
        edited: "EditedPlan | None" = None,
    ) -> "tuple[Scored | None, PrecisionPlan | None]":
        """Score and plan a prompt, as far as the request needs it."""
        from tapwb.execution.kv_plan import plans_by_scores
        from tapwb.plan.precision_plan import uniform_plan

        if request.kind != "reference":
            self._ensure_levels(stored_levels(request), report)
        scored, unscored = None, request.is_routed or request.kind in ("reference", "uniform", "plan")
        if not unscored or plans_by_scores(kv):
            scored = self.score(token_ids, signal_of(request), low_bits=min(stored_levels(request)), progress=report)
        if request.kind == "reference":
            return scored, None
        if request.kind == "plan" or edited is not None:
            return scored, self._saved_plan(request, token_ids, edited)
        if request.kind == "uniform" or request.is_routed:  # gates overrule the plan inside the passes
            return scored, uniform_plan(token_ids.shape[1], request.bits or 8)
        if scored is None:  # every remaining kind scored above
            raise ExecutionError(f"precision {request} needs scores. Use a kind that the grammar lists.")
        return scored, self.plan(scored, request)

    def _saved_plan(
        self, request: PrecisionRequest, token_ids: "Tensor", edited: "EditedPlan | None"
    ) -> "PrecisionPlan":
        from tapwb.plan.request import make_plan

        plan = make_plan(request, token_ids=token_ids[0]) if edited is None else prompt_plan(edited, token_ids)
        self._ensure_levels({min(level, 8) for level in plan.levels} | {8}, self._progress)
        check_groups(self.nested, plan, self.anatomy.n_layers)
        return plan

    def _cache(self, handle: "LoadedModel", kv: str | int | None, scored: Scored | None) -> Any:
        from tapwb.execution.kv_plan import make_cache

        default = self.config.kv_bits or (8 if self.config.memory_efficient_mode else 16)
        scores = None if scored is None else scored.importance.scores[0]
        return make_cache(handle.model.config, default if kv is None else kv, scores)
