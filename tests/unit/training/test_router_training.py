"""Training a per-layer router: gates learn what is there to learn, and are scored on windows that they did not see."""

import dataclasses

import pytest
import torch

from tapwb.core.errors import Cancelled, UsageError
from tapwb.core.precision import parse_precision
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.engine.routing import router_of, routing_for
from tapwb.execution.router import LayerRouter
from tapwb.execution.router_file import load_router, router_path, save_router
from tapwb.training import router as training
from tapwb.training.router import RouterSettings, train_router
from tapwb.training.router_statistics import GateSums

TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(600))
SETTINGS = RouterSettings(context=40, windows=10)


def engine_of(model="tiny-random-llama", **options) -> TAPEngine:
    """A tiny model, readable at all levels."""
    made = TAPEngine(TAPConfig(precision_levels=(3, 4, 5, 6, 8), mean_bits=5, time_reference=False, **options))
    made.load_model(model)
    return made


@pytest.fixture(scope="module")
def engine() -> TAPEngine:
    """One engine for all."""
    return engine_of()


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    """An empty cache for routers."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(cache_folder, monkeypatch):
    """Nothing is kept outside of the test."""
    import tapwb.execution.router_file as module

    monkeypatch.setattr(module.settings, "cache_dir", lambda: cache_folder)


@pytest.fixture(scope="module")
def router(engine, cache_folder) -> LayerRouter:
    """Trained on eight windows, scored on two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.settings, "cache_dir", lambda: cache_folder)
        return train_router(engine, TEXT, SETTINGS)


class Counter:
    """Progress that cancels at a given step of training."""

    def __init__(self, cancel_after: int = 10**9) -> None:
        self.cancel_after, self.steps, self.names = cancel_after, 0, []

    def stage(self, name, total=None, unit=""):
        """Note the stage."""
        self.names.append(name)

    def advance(self, steps=1):
        """Count, and cancel."""
        if self.names[-1].startswith("train the router"):
            self.steps += steps
            if self.steps >= self.cancel_after:
                raise Cancelled

    def check_cancelled(self):
        """Never."""


def same(a: LayerRouter, b: LayerRouter) -> bool:
    """Whether two routers hold the same numbers."""
    return all(torch.equal(x, y) for x, y in zip(a.directions, b.directions, strict=True)) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("slopes", "offsets", "quantiles")
    )


def test_a_gate_finds_the_direction_that_damage_follows():
    """Damage made from one direction of the input and from its size: both are found, in closed form."""
    g = torch.Generator().manual_seed(0)
    sums, wanted = GateSums(), torch.randn(12, generator=g)
    for _ in range(6):
        x = torch.randn(300, 12, generator=g) * torch.rand(300, 1, generator=g).exp()
        features = training.gate_features(x)
        sums.add(
            0, features, features[:, :-1] @ wanted + 2.0 * features[:, -1] + 5 + 0.3 * torch.randn(300, generator=g)
        )
    weights, constant = sums.solve(0, 1e-4)
    assert weights[:-1].tolist() == pytest.approx(wanted.tolist(), abs=0.05)
    assert float(weights[-1]) == pytest.approx(2.0, abs=0.1)
    assert float((features @ weights).mean() + constant) == pytest.approx(0.0, abs=0.3)


def test_estimated_damage_is_error_times_gradient(engine):
    """One layer by hand: the error of its output at low bits, and a finite difference of the loss for the gradient."""
    layers = training.layer_damage_of(engine)
    bench = training._Bench(engine, layers, SETTINGS)
    ids = engine.tokenize(TEXT)[:, :20]
    group = layers.names.index("layer 1 attention.key")
    x, damage = bench.observe(ids, [group], 3)[group]
    (module,) = bench._members[group]
    context, model = engine.nested.context, engine.nested.model
    with torch.inference_mode():
        with context.use(4):
            low = module(x)
        with context.use(8):
            error = (low - module(x)).pow(2).mean(-1)
    moved, gradient = 1e-2, torch.zeros(32)
    added = torch.zeros(1, 20, 32)
    hook = module.register_forward_hook(lambda _module, _inputs, output: output + added)
    working = bench._working.expand(-1, 20)
    with torch.inference_mode(), context.use(working):
        labels = torch.multinomial(
            model(ids, use_cache=False).logits[0].softmax(-1), 1, generator=torch.Generator().manual_seed(3)
        )[:, 0]
        for index in range(32):
            losses = []
            for sign in (1, -1):
                added.zero_()[0, 11, index] = sign * moved
                logits = model(ids, use_cache=False).logits[0].double()
                losses.append(float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum")))
            gradient[index] = (losses[0] - losses[1]) / (2 * moved)
    hook.remove()
    assert float(damage[11]) == pytest.approx(float(error[11] * gradient.pow(2).sum()), rel=0.02)


def test_training_is_repeatable_and_kept(engine, router):
    """The same text and seed give the same numbers; the file beside the model holds them."""
    again = train_router(engine, TEXT, SETTINGS, keep=False)
    assert same(router, again)
    assert same(router_of(engine), router)
    report = router.report
    assert (report["windows_fitted"], report["windows_scored"]) == (8, 2)
    assert report["groups_with_a_gate"] == 14
    assert report["gate_bytes"] == router.n_bytes
    assert set(report["expected_damage_cut"]) == {"4.5", "5.5"}
    for mean, found in report["expected_damage_cut"].items():
        assert found["mean_bits"] == pytest.approx(float(mean), rel=0.02)


def test_a_cancelled_training_goes_on_where_it_stopped(engine, router, cache_folder):
    """Sums survive a cancel; the second call runs only the rest, gives the same router and leaves no scraps."""
    first = Counter(cancel_after=5)
    with pytest.raises(Cancelled):
        train_router(engine, TEXT, SETTINGS, keep=False, progress=first)
    scraps = list((cache_folder / "routers").glob("unfinished-*"))
    assert len(scraps) == 1
    assert GateSums.load(scraps[0]).n_windows == 5
    calls, real = [], training._Bench.observe

    def counted(self, *arguments):
        calls.append(1)
        return real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Bench, "observe", counted)
        resumed = train_router(engine, TEXT, SETTINGS, keep=False)
    assert len(calls) == 3 + 2, "three windows left to fit, two to score"
    assert same(resumed, router)
    assert not list((cache_folder / "routers").glob("unfinished-*"))


def test_little_memory_takes_more_passes_and_gives_the_same(engine, router):
    """A few groups at a time."""
    small = dataclasses.replace(SETTINGS, statistics_bytes=200_000)
    progress = Counter()
    parts = train_router(engine, TEXT, small, keep=False, progress=progress)
    assert sum(name.startswith("train the router") for name in progress.names) > 1
    assert same(parts, router)


def test_held_out_windows_are_not_fitted(engine, router, monkeypatch):
    """Garbage damage in every fifth window changes scores and cuts, and not one direction."""
    real, seeds = training._Bench.observe, []

    def garbled(self, token_ids, groups, seed):
        rows = real(self, token_ids, groups, seed)
        seeds.append(seed)
        if seed < 1000:
            return rows
        g = torch.Generator().manual_seed(seed)
        return {group: (x, torch.rand(damage.shape, generator=g)) for group, (x, damage) in rows.items()}

    monkeypatch.setattr(training._Bench, "observe", garbled)
    other = train_router(engine, TEXT, SETTINGS, keep=False)
    assert sum(seed >= 1000 for seed in seeds) == 2
    assert all(torch.equal(a, b) for a, b in zip(other.directions, router.directions, strict=True))
    assert other.report["rank_correlation"] < router.report["rank_correlation"]
    assert abs(other.report["rank_correlation"]) < 0.1


def test_a_router_of_another_model_or_of_other_cells_is_refused(engine, router, tmp_path):
    """By checksum, by cells, and where none was trained."""
    file = str(save_router(router, tmp_path / "llama.safetensors"))
    assert routing_for(engine, parse_precision("adaptive:5"), 0) is None
    assert same(routing_for(engine, parse_precision(f"router:4.5:{file}"), 0).router, router)
    other = engine_of("tiny-random-qwen2")
    with pytest.raises(UsageError, match=r"trained for tiny-random-llama, not for the weights of tiny-random-qwen2"):
        router_of(other, file)
    with pytest.raises(UsageError, match=r"no router was trained for tiny-random-qwen2.*tapwb train-router"):
        router_of(other)
    regrouped = engine_of(group_size=32)
    with pytest.raises(UsageError, match=r"other cells of this model \(group size 64\)"):
        router_of(regrouped, file)


def test_a_short_text_is_refused(engine):
    """With what it has and what it takes."""
    with pytest.raises(UsageError, match="training needs 200"):
        train_router(engine, "abc", SETTINGS)


def test_an_answer_keeps_its_mean_and_counts_its_gates(engine, router):
    """Generated with a router: the mean of the answer within 2 %, the note on cost, and fewer bytes than at 8 bits."""
    prompt = TEXT[:60]
    _, trace, metrics = engine.trace(prompt, 201, precision="router:4.5", temperature=1.0, seed=1)
    answer = trace.processed_bits[len(trace.prompt_ids) :]
    assert sum(answer) / len(answer) == pytest.approx(4.5, rel=0.02)
    assert sum(trace.prompt_bits) / len(trace.prompt_bits) == pytest.approx(4.5, rel=0.02)
    assert len(set(answer)) > 3, "tokens differ"
    assert any(f"{router.n_bytes:,} bytes" in note for note in metrics["notes"])
    assert metrics["precision"]["request"] == "router:4.5"
    steps_bytes = (trace.weight_bytes_read - engine.nested.bytes_read(8)) / len(trace.step_s)
    assert steps_bytes < engine.nested.bytes_read(8) + router.n_bytes - 20_000, "steps read fewer planes"
    assert router_path(engine.loaded.info.checksum_sha256, router.report["cells"]).is_file()


def test_the_router_says_what_its_file_says(router, tmp_path):
    """A saved report is read back as it was."""
    file = save_router(router, tmp_path / "r.safetensors")
    assert dict(load_router(file).report) == dict(router.report)
