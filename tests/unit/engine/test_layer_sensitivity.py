"""Layers are measured one group at a time, remembered, and used while decoding.

Seed features: S1.8
"""

import json

import pytest
import torch

from tapwb.core.errors import Cancelled, UsageError
from tapwb.core.jobs import NO_PROGRESS
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.engine.layer_sensitivity import (
    calibration_text,
    cells_fingerprint,
    known_layer_damage,
    layer_damage_of,
    measure_layer_damage,
)
from tapwb.execution.layer_groups import assign_layer_groups, bytes_read
from tapwb.execution.level_correction import LevelCorrection
from tapwb.importance.signal import kl_nats

TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(300))


@pytest.fixture(scope="module")
def engine():
    """A tiny model of two layers, readable at 3 to 8 bits."""
    made = TAPEngine(TAPConfig(precision_levels=(3, 4, 5, 6, 8), mean_bits=5, time_reference=False))
    made.load_model("tiny-random-llama", levels=[3, 4, 5, 6, 8])
    return made


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache for measurements; models stay where they are."""
    import tapwb.engine.layer_sensitivity as module

    monkeypatch.setattr(module.settings, "cache_dir", lambda: tmp_path)
    return tmp_path / "layer_damage"


def test_groups_cover_every_weight_once(engine):
    """Names in the order of depth; sizes add up to all adaptive weights; a second call changes nothing."""
    groups = assign_layer_groups(engine.nested)
    roles = [f"attention.{part}" for part in ("key", "output", "query", "value")]
    roles += [f"mlp.{part}" for part in ("down", "gate", "up")]
    assert [g.name for g in groups] == [f"layer {i} {role}" for i in range(2) for role in roles]
    linear = {n: m for n, m in engine.nested.model.named_modules() if hasattr(m, "layer_fraction") and not m.fixed_bits}
    assert sum(g.n_weights for g in groups) == sum(m.in_features * m.out_features for m in linear.values())
    assert assign_layer_groups(engine.nested) == groups


def test_a_row_of_bits_reaches_its_group_and_no_other(engine):
    """Only the matrices of the named group see the changed level."""
    groups = assign_layer_groups(engine.nested)
    for index, group in enumerate(groups):
        bits = torch.full((len(groups), 3), 8)
        bits[index] = 4
        with engine.nested.context.use(bits):
            low = {
                name
                for name, module in engine.nested.model.named_modules()
                if hasattr(module, "layer_fraction")
                and not module.fixed_bits
                and int(torch.as_tensor(engine.nested.context.for_rows(3, module.layer_fraction)).min()) == 4
            }
        assert low
        assert all(f"layers.{group.layer}." in name for name in low)
        assert {"attention" in group.role} == {"self_attn" in name for name in low}


def test_each_number_is_the_divergence_of_a_whole_pass(engine, cache):
    """By hand for two groups: the short cut over recorded layers changes nothing."""
    damage = layer_damage_of(engine, TEXT, n_tokens=60, levels=(3, 4))
    ids = engine.tokenize(TEXT)[:, :60]
    nested, reference = engine.nested, engine.reference(dtype="float32").model
    with torch.inference_mode():
        target = reference(ids, use_cache=False).logits
        with nested.context.use(8):
            rest = float(kl_nats(target, nested.model(ids, use_cache=False).logits).mean())
        for group in (1, 12):
            bits = torch.full((damage.n_groups, 60), 8)
            bits[group] = 3
            with nested.context.use(bits):
                by_hand = float(kl_nats(target, nested.model(ids, use_cache=False).logits).mean()) - rest
            assert float(damage.nats[group, 0]) == pytest.approx(by_hand, rel=1e-3, abs=1e-6)
    assert damage.uniform_nats[3] > damage.uniform_nats[5] > damage.uniform_nats[8] > 0


def test_the_measurement_is_made_once_and_again_for_another_text(engine, cache, monkeypatch):
    """A second call reads the file; other tokens, or a damaged file, are measured anew."""
    first = layer_damage_of(engine, TEXT, n_tokens=40)
    import tapwb.engine.layer_sensitivity as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "measure_layer_damage", lambda *_a, **_k: pytest.fail("measured again"))
        assert layer_damage_of(engine, TEXT, n_tokens=40).to_json() == first.to_json()
    layer_damage_of(engine, TEXT[50:], n_tokens=40)
    files = list(cache.glob("*.json"))
    assert len(files) == 2
    for file in files:
        file.write_text("{", encoding="utf-8")
    assert layer_damage_of(engine, TEXT, n_tokens=40).to_json() == first.to_json()


def test_levels_stored_later_are_measured_into_the_same_record(engine, cache):
    """Groups are not measured again; a level that the first engine did not store joins with its own divergence."""
    fewer = TAPEngine(TAPConfig(precision_levels=(4, 8), mean_bits=5, group_size=64, time_reference=False))
    fewer.load_model("tiny-random-llama")
    first = layer_damage_of(fewer, TEXT, n_tokens=40)
    assert set(first.uniform_nats) == set(fewer.nested.levels)
    more = layer_damage_of(engine, TEXT, n_tokens=40)
    assert set(more.uniform_nats) == set(engine.nested.levels)
    assert more.uniform_nats[3] > more.uniform_nats[4] == first.uniform_nats[4]
    assert torch.equal(more.nats, first.nats)
    whole = measure_layer_damage(
        engine.nested, engine.reference(dtype="float32").model, engine.tokenize(TEXT)[:, :40], levels=(4,)
    )
    assert more.uniform_nats == pytest.approx(whole.uniform_nats, rel=1e-4)
    assert len(list(cache.glob("*.json"))) == 1


def test_the_fingerprint_is_of_the_cells_not_of_the_planes(engine):
    """Other planes of the same weights share measurements; other weights do not."""
    other = TAPEngine(TAPConfig(precision_levels=(4, 8), mean_bits=5, time_reference=False))
    other.load_model("tiny-random-llama")
    assert other.nested.layout != engine.nested.layout
    assert cells_fingerprint(other.nested) == cells_fingerprint(engine.nested)
    other.load_model("tiny-random-mistral")
    assert cells_fingerprint(other.nested) != cells_fingerprint(engine.nested)


def test_calibrated_cells_have_a_fingerprint_of_their_own(engine, cache, tmp_path):
    """Neither plain cells nor the same codes with another bias share their measurement."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    chosen = TAPEngine(
        TAPConfig(precision_levels=(3, 4, 5, 6, 8), mean_bits=5, cells=str(text), group_size=64, time_reference=False)
    )
    chosen.load_model("tiny-random-llama")
    plain, first = cells_fingerprint(engine.nested), cells_fingerprint(chosen.nested)
    assert plain != first
    assert layer_damage_of(chosen, TEXT, n_tokens=40).source["cells"] == first
    assert len(list(cache.glob("*.json"))) == 1
    fewer = TAPEngine(
        TAPConfig(precision_levels=(4, 8), mean_bits=5, cells=str(text), group_size=64, time_reference=False)
    )
    fewer.load_model("tiny-random-llama")
    assert cells_fingerprint(fewer.nested) == first
    correction = next(module for module in chosen.nested.model.modules() if isinstance(module, LevelCorrection))
    correction.bias += 1
    assert cells_fingerprint(chosen.nested) not in (plain, first)
    layer_damage_of(chosen, TEXT, n_tokens=40)
    assert len(list(cache.glob("*.json"))) == 2


def test_a_record_that_came_along_counts_for_its_own_weights_cells_and_text(engine, cache, tmp_path, monkeypatch):
    """Then no pass is made; a record of other weights, cells, levels or text is not taken."""
    ids = engine.tokenize(calibration_text()[6000:9072])[:, :256]
    reference = engine.reference(dtype="float32").model
    made = measure_layer_damage(engine.nested, reference, ids, levels=(4,))
    record = made.to_json() | {"provenance": {"model_checksum_sha256": engine.loaded.info.checksum_sha256}}
    (tmp_path / "results").mkdir()
    import tapwb.engine.layer_sensitivity as module

    monkeypatch.setattr(module.settings, "data_dir", lambda: tmp_path)
    monkeypatch.setattr(module, "MEASURED_LEVELS", (4,))
    source = record["source"]
    for change, is_taken in (
        ({}, True),
        ({"provenance": {"model_checksum_sha256": "0" * 64}}, False),
        ({"source": source | {"cells": "plain-g128-00000000"}}, False),
        ({"source": source | {"text_id": "another"}}, False),
        ({"levels": [3]}, False),
    ):
        (tmp_path / "results" / "layer-damage-x.jsonl").write_text(json.dumps(record | change), encoding="utf-8")
        known = known_layer_damage(engine)
        assert (known is not None) is is_taken, change
    assert not list(cache.glob("*.json"))


def test_cancelling_leaves_nothing(engine, cache):
    """No file, and the model reads as before."""

    class StopsAtTen:
        """Raises on the tenth advance."""

        done = 0

        def stage(self, *_args, **_named):
            """Ignored."""

        def advance(self, *_args):
            """Count and stop."""
            self.done += 1
            if self.done == 10:
                raise Cancelled

    ids = engine.tokenize(TEXT)[:, :30]
    reference = engine.reference(dtype="float32").model
    with torch.inference_mode():
        before = engine.nested.model(ids, use_cache=False).logits
    with pytest.raises(Cancelled):
        measure_layer_damage(engine.nested, reference, ids, progress=StopsAtTen())
    with torch.inference_mode():
        assert torch.equal(engine.nested.model(ids, use_cache=False).logits, before)
    assert not list(cache.glob("*"))


def test_too_little_text_and_unstored_levels_are_refused(engine):
    """In one line, before anything is run."""
    with pytest.raises(UsageError, match="fewer than 2 tokens"):
        layer_damage_of(engine, "a")
    with pytest.raises(UsageError, match=r"\[1\] are not stored"):
        layer_damage_of(engine, TEXT, levels=(1, 4))


def test_a_ladder_keeps_the_mean_while_decoding(engine, cache):
    """`layers:5` at 250 tokens: the weighted mean is within 2 percent, with tokens alike and with a signal."""
    for spec in ("layers:5", "layers:4.5:entropy"):
        target = float(spec.split(":")[1])
        _, trace, metrics = engine.trace(TEXT[:100], 250, precision=spec)
        answer = trace.token_bits[1:]
        if trace.finish_reason == "length":
            assert len(answer) == 249
            assert sum(answer) / len(answer) == pytest.approx(target, rel=0.02)
        assert sum(trace.prompt_bits) / 100 == pytest.approx(target, rel=0.02)
        assert metrics["precision"]["mean_bits"] == pytest.approx(target, rel=0.02)


def test_bytes_read_follow_the_layers(engine):
    """Only the group that is read at more bits reads more planes."""
    groups = assign_layer_groups(engine.nested)
    low, high = (bytes_read(engine.nested, level) for level in (4, 8))
    bits = torch.full((len(groups), 2), 4)
    bits[2, 1] = 8
    assert groups[2].n_weights * 4 / 8 == bytes_read(engine.nested, bits) - low < high - low
    assert bytes_read(engine.nested, torch.full((1, 3), 8)) == high


def test_measuring_works_without_progress(engine):
    """The default reports to nobody."""
    ids = engine.tokenize(TEXT)[:, :20]
    reference = engine.reference(dtype="float32").model
    measured = measure_layer_damage(engine.nested, reference, ids, levels=(4,), progress=NO_PROGRESS)
    assert measured.nats.shape == (14, 1)
