"""What notebooks call: open a model, see its tokens, read its tables; results show with or without a running kernel.

The functions remember which models and data files were used, so that the provenance cell at a report's end can name
them without the notebook's author keeping a list.
"""

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tapwb.core.provenance import Provenance
from tapwb.core.threads import wait_without_spinning
from tapwb.views.report.figures import PLOTLY_MIME
from tapwb.views.report.provenance import provenance_bundle
from tapwb.views.run_facts import run_facts
from tapwb.views.shown import Shown
from tapwb.views.shown import show_table as show_table  # notebooks import all they call from here
from tapwb.views.shown import show_text as show_text

if TYPE_CHECKING:
    from tapwb.engine import Scored, TAPEngine
    from tapwb.evals.cell_ablation import AblationSettings, AblationTable
    from tapwb.evals.kv_pages import CachePicture
    from tapwb.evals.kv_table import KvTable
    from tapwb.evals.longdoc import LongdocTable
    from tapwb.evals.pareto import ParetoSettings
    from tapwb.evals.pareto_table import ParetoTable
    from tapwb.evals.perplexity import PerplexityTable
    from tapwb.evals.speculation_bench import SpeculationTable
    from tapwb.evals.state_bench import StateTable
    from tapwb.execution.speculative.records import Round
    from tapwb.plan.precision_plan import PrecisionPlan
    from tapwb.views.dial import Dial
    from tapwb_widgets.token_strip import AnswerDiff, TokenStrip

wait_without_spinning()  # a notebook imports this before anything that imports torch

_used_models: dict[str, Any] = {}
_used_data: dict[str, str] = {}
_used_seed: list[int] = []


class NotebookProgress:
    """One line under a cell that says what is going on, and is gone afterwards."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle = display(Shown({"text/plain": "", "text/html": ""}), display_id=True)
        self._name, self._unit, self._done, self._told = "", "", 0, -1
        self._total: int | None = None

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        """Begin a stage."""
        self._name, self._total, self._unit, self._done, self._told = name, total, unit, 0, -1
        self._show()

    def advance(self, steps: int = 1) -> None:
        """Count steps; redrawn twenty times a stage at most."""
        self._done += steps
        part = 20 * self._done // self._total if self._total else -1
        if part != self._told:
            self._told = part
            self._show()

    def check_cancelled(self) -> None:
        """Nothing to do: a notebook is stopped by interrupting its kernel."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._update("")

    def _show(self) -> None:
        counted = f": {self._done} of {self._total} {self._unit}" if self._total and self._unit != "byte" else ""
        self._update(f"{self._name}{counted} …")

    def _update(self, text: str) -> None:
        if self._handle is not None:
            self._handle.update(Shown({"text/plain": text, "text/html": html.escape(text)}))


def open_engine(model_id: str = "smollm2-135m", *, seed: int = 0, **settings: Any) -> "TAPEngine":
    """Load a model into an engine, with a progress line, and remember it for the provenance.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        seed: Seed of everything random.
        settings: Fields of :class:`tapwb.engine.TAPConfig`.
    """
    from tapwb.engine import TAPConfig, TAPEngine

    engine = TAPEngine(TAPConfig(seed=seed, **settings))
    with NotebookProgress() as progress:
        loaded = engine.load_model(model_id, progress=progress)
    _used_models[loaded.info.id] = loaded
    _used_seed[:] = [seed]
    return engine


def generate(engine: "TAPEngine", prompt: str, max_new_tokens: int, precision: str) -> tuple[str, dict[str, Any]]:
    """``engine.generate`` with a progress line: the answer, and what it took."""
    with NotebookProgress() as progress:
        return engine.generate(prompt, max_new_tokens, precision=precision, progress=progress)


def python_docs_text(n_characters: int) -> str:
    """English technical prose that comes with every Python (``pydoc_data.topics``), so that no download is needed."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))[:n_characters]
    note_data(f"pydoc_data.topics[:{n_characters}]", text.encode())
    return text


def read_data(path: str | Path) -> str:
    """Read a text file and remember its checksum for the provenance."""
    content = Path(path).read_bytes()
    note_data(str(path), content)
    return content.decode("utf-8")


def note_data(name: str, content: bytes) -> None:
    """Remember that ``content`` was used."""
    _used_data[name] = hashlib.sha256(content).hexdigest()


def show_run(metrics: Mapping[str, Any]) -> Shown:
    """What a generation took, each number with its source."""
    return Shown(provenance_bundle(run_facts(metrics)))


def show_tokens(
    engine: "TAPEngine", scored: "Scored", plan: "PrecisionPlan | None" = None, signal: str | None = None
) -> "TokenStrip":
    """Tokens tinted by importance, with their bits below: a widget that also shows without a kernel.

    Args:
        engine: Whose tokenizer made the tokens.
        scored: From ``engine.score``.
        plan: From ``engine.plan``; without it no bits are drawn.
        signal: One of the scored signals; by default their combination.
    """
    from tapwb.views.payloads import strip_fields, token_bytes
    from tapwb_widgets.token_strip import token_strip

    ids = scored.token_ids[0].tolist()
    scores = scored.importance.parts[signal] if signal else scored.importance.scores
    tokenizer = engine.loaded.tokenizer if engine.loaded else None
    return token_strip(
        strip_fields(
            token_bytes(tokenizer, ids),
            token_ids=ids,
            special=[index for index, token in enumerate(ids) if token in scored.facts.special_ids],
            scores=scores[0].nan_to_num(0.5).tolist(),
            bits=plan.bits.double().mean(0).round().int().tolist() if plan else [],
            signal=signal or scored.importance.signal,
        )
    )


def show_reasons(engine: "TAPEngine", scored: "Scored", plan: "PrecisionPlan", indices: Sequence[int]) -> Shown:
    """Why the tokens at ``indices`` got their bits, in words."""
    from tapwb.plan.explain import explain_token
    from tapwb.views.payloads import readable, token_bytes

    tokenizer = engine.loaded.tokenizer if engine.loaded else None
    texts = [readable(raw) for raw in token_bytes(tokenizer, scored.token_ids[0].tolist())]
    return show_text("\n".join(explain_token(plan, scored.importance, i, texts[i]) for i in indices))


def show_difference(candidate: str, baseline: str, titles: tuple[str, str]) -> "AnswerDiff":
    """Two texts side by side with the first difference marked.

    Args:
        candidate: The text under test.
        baseline: What it is held against.
        titles: Headings of both.
    """
    from tapwb_widgets.token_strip import AnswerDiff

    return AnswerDiff(candidate=candidate, baseline=baseline, candidate_title=titles[0], baseline_title=titles[1])


def show_figure(figure: dict[str, Any]) -> Shown:
    """A plotly figure given as plain JSON; reports draw it as a static picture."""
    return Shown({PLOTLY_MIME: figure, "text/plain": figure["layout"]["title"]["text"]})


def compare_precisions(
    model_id: str, text: str, precisions: Sequence[str], *, context: int, windows: int, seed: int = 0
) -> "PerplexityTable":
    """Quality of several precisions on the same windows of a text, with a progress line.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        text: The text to predict.
        precisions: In the grammar of the command line.
        context: Tokens in a window.
        windows: Windows, from the start.
        seed: Seed of the random controls and the intervals.
    """
    from tapwb.core.precision import parse_precision
    from tapwb.evals.perplexity import evaluate_perplexity

    requests = [parse_precision(precision) for precision in precisions]
    with NotebookProgress() as progress:
        return evaluate_perplexity(
            model_id, text, requests, context=context, windows=windows, seed=seed, progress=progress
        )


def budget_dial(
    engine: "TAPEngine", scored: "Scored", means: Sequence[float], signal: str, start: float | None = None
) -> "Dial":
    """A slider over budgets; each stop shows the tokens' bits, what they read, and what layers would get instead.

    Args:
        engine: With the model loaded.
        scored: From ``engine.score`` with ``signal``.
        means: Stops, bits.
        signal: What chooses the tokens.
        start: Stop to begin at.
    """
    from tapwb.evals.budget_stops import budget_stops, layer_damage_at_hand
    from tapwb.views.dial import Dial

    stops = budget_stops(engine, scored, means, signal, layer_damage_at_hand(engine))
    pages = []
    for stop in stops:
        counts = {f"{bits} bits": count for bits, count in stop.plan.histogram().items() if count}
        tokens = show_table(["tokens", "count"], list(counts.items()), title="Tokens")
        shares = stop.layers if isinstance(stop.layers, dict) else {}
        rows: list[list[Any]] = [[f"weights at {bits} bits", f"{share:.1%}"] for bits, share in shares.items()]
        rows.append(["perplexity ratio to expect", stop.layers_ratio])
        facts: list[list[Any]] = [["mean bits", stop.plan.mean_bits]]
        facts.append(["weight bytes read per token", stop.bytes_per_token])
        strip = show_tokens(engine, scored, stop.plan)
        parts = [show_table(["", "value"], facts), tokens, show_table(["layers instead", ""], rows, title="Layers")]
        pages.append((f"{stop.mean_bits:g}", stacked(Shown({"text/html": strip.to_html(), "text/plain": ""}), *parts)))
    return Dial("mean bits", pages, None if start is None else f"{start:g}")


def stacked(*parts: Shown) -> Shown:
    """Several things, one under the other."""
    return Shown(
        {
            "text/html": "".join(str(part.bundle["text/html"]) for part in parts),
            "text/plain": "\n".join(str(part.bundle["text/plain"]) for part in parts if part.bundle["text/plain"]),
        }
    )


def measure_curve(model_id: str, text: str, settings: "ParetoSettings") -> "ParetoTable":
    """Quality against mean bits with every control, with a progress line."""
    from tapwb.evals.pareto import measure_pareto

    with NotebookProgress() as progress:
        return measure_pareto(model_id, text, settings, progress=progress)


def measure_caches(model_id: str, text: str, **settings: Any) -> "KvTable":
    """Caches side by side, with a progress line; settings of :func:`tapwb.evals.kv_bench.evaluate_kv`."""
    from tapwb.evals.kv_bench import evaluate_kv

    with NotebookProgress() as progress:
        return evaluate_kv(model_id, text, progress=progress, **settings)


def picture_of_cache(model_id: str, text: str, kv: str, context: int) -> "CachePicture":
    """Bits of every cached token, with a progress line."""
    from tapwb.evals.kv_pages import picture_cache

    with NotebookProgress() as progress:
        return picture_cache(model_id, text, kv, context=context, progress=progress)


def watch_guesses(
    engine: "TAPEngine", prompt: str, max_new_tokens: int, speculate: str
) -> "tuple[str, dict[str, Any], list[tuple[Round, str]]]":
    """Generate at 8 bits with guesses; the answer, its metrics, and every round with the text it added."""
    rounds: list[tuple[Round, str]] = []
    loaded = engine.loaded
    decode = loaded.tokenizer.decode if loaded is not None else str

    def note(one: "Round", record: Any) -> None:
        rounds.append((one, str(decode(list(one.token_ids)))))

    with NotebookProgress() as progress:
        text, metrics = engine.generate(
            prompt, max_new_tokens, precision="8", speculate=speculate, on_round=note, progress=progress
        )
    return text, metrics, rounds


def measure_guessers(model_id: str, *, prompt_tokens: int, new_tokens: int, **settings: Any) -> "SpeculationTable":
    """Guessers side by side on the texts that come with the program, with a progress line.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        prompt_tokens: Tokens of each prompt.
        new_tokens: Tokens of each answer.
        **settings: Of :func:`tapwb.evals.speculation_bench.measure_speculation`.
    """
    from tapwb.engine.layer_sensitivity import calibration_text
    from tapwb.evals.speculation_bench import SpeculationTask, measure_speculation

    task = SpeculationTask(prompt_tokens, (new_tokens,))
    text = calibration_text()
    note_data("data/calibration", text.encode())
    with NotebookProgress() as progress:
        return measure_speculation(model_id, text, task=task, progress=progress, **settings)


def measure_states(**settings: Any) -> "StateTable":
    """Recurrent states at few bits, with a progress line; settings of :func:`tapwb.evals.state_bench.measure_state`."""
    from tapwb.evals.state_bench import measure_state

    with NotebookProgress() as progress:
        return measure_state(progress=progress, **settings)


def measure_long_documents(n_characters: int = 0, **settings: Any) -> "LongdocTable":
    """Attention beside states on Python's own manual, with a progress line.

    Args:
        n_characters: Only the beginning of the manual; 0 takes all of it.
        **settings: Of :class:`tapwb.evals.longdoc.LongdocSettings`.
    """
    from tapwb.evals.longdoc import LongdocSettings, measure_longdoc
    from tapwb.training.zoo.text import manual_text

    text = manual_text()[: n_characters or None]
    note_data("pydoc_data.topics", text.encode())
    with NotebookProgress() as progress:
        return measure_longdoc(text, LongdocSettings(**settings), progress=progress)


def ablate_cells(model_id: str, settings: "AblationSettings") -> "tuple[AblationTable, AblationTable]":
    """Parts of the calibrated cells, then their calibration texts, on texts that come with the program."""
    from tapwb.evals.cell_ablation import ablate_parts, ablate_texts, shipped_texts

    calibration, texts = shipped_texts()
    for name, text in (calibration | {f"{name}, to judge": text for name, text in texts.items()}).items():
        note_data(name, text.encode())
    with NotebookProgress() as progress:
        parts = ablate_parts(model_id, calibration["prose"], texts["prose"], settings, progress=progress)
        return parts, ablate_texts(model_id, calibration, texts, settings, progress=progress)


def saved_results(name: str) -> list[dict[str, Any]]:
    """Records of a file in ``data/results``, its checksum remembered for the provenance.

    Args:
        name: For example ``"pareto-smollm2-135m"``.

    Raises:
        UsageError: If there is no such file.
    """
    from tapwb.core.errors import UsageError
    from tapwb.core.settings import data_dir

    folder = data_dir() / "results"
    if not (folder / f"{name}.jsonl").is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.jsonl")))
        raise UsageError(f"no saved results {name!r}. There are: {known or 'none'}.")
    content = (folder / f"{name}.jsonl").read_bytes()
    note_data(f"data/results/{name}.jsonl", content)
    return [json.loads(line) for line in content.decode().splitlines() if line.strip()]


def measured_where(record: Mapping[str, Any]) -> str:
    """One line on when and where a saved record was measured."""
    known = record["provenance"]
    return (
        f"measured {known['utc'][:10]} on {known['device']}, {known['threads']} thread(s), tapwb {known['commit'][:8]}"
    )


def show_provenance() -> Shown:
    """Where the numbers of this notebook come from: versions, commit, machine, seed, models, data."""
    loaded = list(_used_models.values())
    last = loaded[-1] if loaded else None
    facts = Provenance.collect(
        seed=_used_seed[0] if _used_seed else None,
        model=last.info if last else None,
        device=last.device if last else "cpu",
    ).to_json()
    facts["models"] = {one.info.id: _model_facts(one.info) for one in loaded}
    facts["data_sha256"] = dict(_used_data)
    return Shown(provenance_bundle(facts))


def _model_facts(info: Any) -> dict[str, Any]:
    # The path is left out: a report is made to be forwarded, and a folder name can carry a user's name.
    return {key: value for key, value in info.to_json().items() if key != "path" and value is not None}
