"""One engine prepared to compare several precisions on the same token windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tapwb.core.activation_spec import ActivationRequest
from tapwb.core.errors import PromptTooLong, UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import PrecisionRequest
from tapwb.engine import TAPConfig, TAPEngine, signal_of, stored_levels
from tapwb.engine.best import settle
from tapwb.engine.routing import routing_for
from tapwb.execution.activations import ActivationUse
from tapwb.execution.bits import RowRouter
from tapwb.execution.kv_plan import attention_of, make_cache, plans_by_scores
from tapwb.models.cache_rules import cache_arguments

if TYPE_CHECKING:
    from tapwb.models.info import LoadedModel


@dataclass(frozen=True, slots=True)
class Pass:
    """Logits of one window at one precision.

    Attributes:
        logits: Shape (token, vocabulary), fp32.
        mean_bits: Mean level over the tokens.
    """

    logits: Tensor
    mean_bits: float


class ComparisonSession:
    """The reference weights and one nested copy, side by side.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        precisions: What will be compared; decides which levels the nested copy stores.
        group_size: Columns per quantization group.
        cells: Plain, calibrated, or a calibration text (see :class:`tapwb.engine.TAPConfig`).
        seed: Seed of random controls.
        progress: Told about loading and quantizing.
        **options: Passed to the loader.
    """

    def __init__(
        self,
        model_id: str,
        precisions: Sequence[PrecisionRequest],
        *,
        group_size: int | None = None,
        cells: str = "plain",
        seed: int = 0,
        progress: Progress = NO_PROGRESS,
        **options: Any,
    ) -> None:
        if not precisions:
            raise UsageError("no precision to evaluate. Name at least one, for example 16,8,4.")
        self.seed = seed
        self.engine = TAPEngine(
            TAPConfig(
                group_size=group_size,
                cells=cells,
                seed=seed,
                precision_levels=(8,),
                mean_bits=8,
                time_reference=False,
            )
        )
        levels = set().union(*(stored_levels(request) for request in precisions))
        self.engine.load_model(model_id, levels=sorted(levels), progress=progress, **options)
        # fp32, so that what is compared is the weights and not the rounding of activations.
        self._reference = self.engine.reference(progress, dtype="float32")

    @classmethod
    def around(cls, engine: TAPEngine, reference: "LoadedModel", *, seed: int = 0) -> "ComparisonSession":
        """A session on an engine that is loaded already.

        Args:
            engine: Its nested copy must store the levels that will be run.
            reference: The weights as loaded.
            seed: Seed of random controls.
        """
        session = cls.__new__(cls)
        session.seed, session.engine, session._reference = seed, engine, reference
        return session

    @property
    def reference_model(self) -> "LoadedModel":
        """The weights as loaded."""
        return self._reference

    @property
    def device(self) -> str:
        """Where the models run."""
        return self._reference.device

    @torch.inference_mode()
    def reference(self, token_ids: Tensor) -> Tensor:
        """Logits of the weights as loaded, shape (token, vocabulary), fp32.

        Args:
            token_ids: Shape (1, token).
        """
        return self._reference.model(token_ids, use_cache=False).logits[0].float()

    def run(
        self,
        token_ids: Tensor,
        request: PrecisionRequest,
        kv: str | int | None = None,
        activations: ActivationUse | None = None,
    ) -> Pass:
        """Logits of one window at one precision.

        Args:
            token_ids: Shape (1, token).
            request: The precision; ``16`` runs the reference weights.
            kv: Precision of the cache. Anything but 16 feeds the window page by page, so that later tokens really
                read the sealed ones.
            activations: Precision of the activations of nested weights, and its record; as they are by default.

        Raises:
            PromptTooLong: If the window exceeds the model's context.
        """
        self._check_length(token_ids)
        request = settle(self.engine, request)
        scores, mean_bits = None, 16.0
        bits: int | Tensor = request.bits or 16
        routing = routing_for(self.engine, request, self.seed)
        is_planned = request.kind not in ("reference", "uniform") and routing is None
        if is_planned or plans_by_scores(kv):
            low = min(stored_levels(request)) if request.kind != "reference" else None
            scored = self.engine.score(token_ids, signal_of(request), low_bits=low, seed=self.seed)
            scores = scored.importance.scores[0]
            if is_planned:
                # Levels of 16 and 32 run at the highest stored one, and are counted as that.
                plan, top = self.engine.plan(scored, request), self.engine.nested.levels[-1]
                bits = plan.bits.clamp(max=top)
                mean_bits = plan.mean_bits if plan.levels[-1] <= top else float(bits.double().mean())
        if isinstance(bits, int):
            mean_bits = float(bits)
        with torch.inference_mode():
            if request.kind == "reference":
                return Pass(self._forward(self._reference.model, token_ids, kv, scores), 16.0)
            nested = self.engine.nested
            with (activations or ActivationUse(ActivationRequest("16"))).on(nested.context):
                logits = self._forward(nested.model, token_ids, kv, scores, routing or bits)
            return Pass(logits, routing.finish_pass(token_ids.numel()).mean_bits if routing else mean_bits)

    def _check_length(self, token_ids: Tensor) -> None:
        limit = self.engine.anatomy.context_length
        if limit is not None and token_ids.shape[1] > limit:
            raise PromptTooLong(
                f"a text has {token_ids.shape[1]} tokens but the model's context is {limit}. Use a shorter text."
            )

    def _forward(
        self,
        model: Any,
        token_ids: Tensor,
        kv: str | int | None,
        scores: Tensor | None,
        bits: int | Tensor | RowRouter = 16,
    ) -> Tensor:
        context = self.engine.nested.context
        if kv is None or str(kv) == "16":
            with context.use(bits):
                return model(token_ids, use_cache=False).logits[0].float()  # type: ignore[no-any-return]
        cache, parts = make_cache(model.config, kv, scores), []
        with attention_of(model, cache):
            for start in range(0, token_ids.shape[1], 64):
                chunk = slice(start, start + 64)
                with context.use(bits[..., chunk] if isinstance(bits, Tensor) else bits):
                    part = token_ids[:, chunk]
                    out = model(part, **cache_arguments(model, cache, part.shape[1]))
                parts.append(out.logits[0].float())
        return torch.cat(parts)
