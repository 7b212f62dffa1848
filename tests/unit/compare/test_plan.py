"""The registered plan: frozen, hashed, the same from JSON and YAML, and clear about what it refuses.

Seed features: S0.15
"""

import dataclasses
import json

import pytest
import yaml

from tapwb.compare.items import PromptItem, fingerprint, read_items
from tapwb.compare.plan import ComparisonPlan, MetricSpec, StoppingRule, SystemSpec, parameters_text
from tapwb.compare.plan_file import plan_from_json, read_plan, write_plan
from tapwb.core.errors import UsageError

ITEMS = [PromptItem(f"q{i}", f"What is {i}?", f"doc{i // 2}", reference=str(i)) for i in range(10)]


@pytest.fixture
def plan():
    """A plan with two metrics."""
    return ComparisonPlan(
        "small model against a remote one",
        SystemSpec("remote", "gpt-4.1-2025-04-14", "openai", parameters=parameters_text({"temperature": 0})),
        SystemSpec("local", "HuggingFaceTB/SmolLM2-135M@1", precision="8"),
        fingerprint("ten questions", ITEMS),
        (
            MetricSpec("exact match", "binary", margin=0.05),
            MetricSpec("latency", "latency", "s", higher_is_better=False),
        ),
        "exact match",
        "non-inferiority",
    )


def test_a_plan_comes_back_from_its_file_with_its_hash(plan, tmp_path):
    """And is never written over another one."""
    path = tmp_path / "plan.json"
    assert write_plan(plan, path) == plan.sha256 == json.loads(path.read_text())["sha256"]
    assert read_plan(path) == plan
    with pytest.raises(UsageError, match="not replaced"):
        write_plan(plan, path)


def test_yaml_and_json_say_the_same(plan, tmp_path):
    """Whole numbers where a float is meant, another order of fields, defaults left out."""
    data = plan.to_json()
    data = dict(reversed(data.items()))
    del data["repeats"], data["stopping"], data["format"]
    data["alpha"] = 0.05
    path = tmp_path / "plan.yml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    assert read_plan(path).sha256 == plan.sha256


def test_every_field_is_in_the_hash(plan):
    """No choice can be changed afterwards without a trace."""
    changes = [
        {"title": "other"},
        {"system_b": dataclasses.replace(plan.system_b, parameters=parameters_text({"temperature": 1}))},
        {"prompts": fingerprint("ten questions", ITEMS[:-1])},
        {"metrics": (dataclasses.replace(plan.metrics[0], margin=0.06), plan.metrics[1])},
        {"intent": "superiority"},
        {"alpha": 0.01},
        {"power": 0.9},
        {"stopping": StoppingRule("sequential")},
        {"repeats": 3},
        {"seed": 1},
        {"primary": "latency", "intent": "superiority"},
    ]
    touched = {name for change in changes for name in change}
    assert touched >= {field.name for field in dataclasses.fields(plan)} - {"system_a"}
    hashes = {dataclasses.replace(plan, **change).sha256 for change in changes}
    assert len(hashes | {plan.sha256}) == len(changes) + 1


def test_a_plan_that_was_changed_after_registration_is_refused(plan, tmp_path):
    """By its hash."""
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    path.write_text(path.read_text().replace('"margin": 0.05', '"margin": 0.5'))
    with pytest.raises(UsageError, match="changed afterwards"):
        read_plan(path)


def test_a_plan_is_frozen(plan):
    """Its records too."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.alpha = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.metrics[0].margin = 0.5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"alphas": 0.05}, "Did you mean 'alpha'"),
        ({"alpha": "0.05"}, "alpha is str '0.05'. Give a number"),
        ({"alpha": True}, "Give a number"),
        ({"alpha": 2}, "0 to 0.5"),
        ({"alpha": float("nan")}, "finite"),
        ({"power": 0.2}, "0.5 to 1"),
        ({"repeats": 1.5}, "whole number"),
        ({"repeats": 0}, "1 or more"),
        ({"intent": "win"}, "superiority, non-inferiority, equivalence"),
        ({"primary": "bleu"}, "Planned: exact match, latency"),
        ({"stopping": {"kind": "later"}}, "fixed, sequential"),
        ({"stopping": {"kind": "sequential", "first_look": 5}}, "30 or more"),
        ({"stopping": []}, "mapping"),
        ({"metrics": []}, "at least one"),
        ({"metrics": "exact match"}, "list of metrics"),
        ({"metrics": [{"name": "exact match"}]}, "lacks 'kind'"),
        ({"metrics": [{"name": "exact match", "kind": "binary"}]}, "needs a margin"),
        ({"metrics": [{"name": "exact match", "kind": "binary", "margin": -1}]}, "above 0"),
        ({"metrics": [{"name": "exact match", "kind": "latency", "margin": 1}]}, "higher_is_better"),
        ({"format": "tapwb-comparison-plan/9"}, "This program reads"),
        ({"prompts": {"name": "x", "sha256": "abc", "n_items": 1, "n_clusters": 1}}, "SHA-256"),
        ({"system_a": {"name": "local", "model": "m"}}, "name of its own"),
        ({"system_a": {"name": "x", "model": ""}}, "lacks its name or model"),
        ({"system_a": {"name": "x", "model": "m", "prompt_template": "hello"}}, "no {prompt}"),
    ],
)
def test_a_bad_field_is_named_with_what_is_allowed(plan, change, says):
    """One field at a time, as it would stand in a file."""
    with pytest.raises(UsageError) as error:
        plan_from_json(plan.to_json() | change)
    assert says in str(error.value)


def test_a_missing_field_is_named(plan):
    """With the others that are needed."""
    data = plan.to_json()
    del data["primary"]
    with pytest.raises(UsageError, match=r"lacks 'primary'\. Needed: title, system_a"):
        plan_from_json(data)


@pytest.mark.parametrize(
    ("name", "text", "says"), [("p.json", "{", "parsed"), ("p.yml", "a: [", "parsed"), ("p.toml", "", "yaml")]
)
def test_files_that_are_no_plans_are_refused(tmp_path, name, text, says):
    """Also those that are not there."""
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=says):
        read_plan(tmp_path / name)
    with pytest.raises(UsageError, match="cannot be read"):
        read_plan(tmp_path / "absent.json")


def test_parameters_have_one_form():
    """Order does not matter; what JSON cannot hold is refused."""
    assert parameters_text({"b": 1, "a": [2]}) == parameters_text({"a": [2], "b": 1}) == '{"a":[2],"b":1}'
    with pytest.raises(UsageError, match="JSON"):
        parameters_text({"a": float("nan")})
    with pytest.raises(UsageError, match="JSON"):
        parameters_text({"a": object()})


def test_items_are_known_by_their_fingerprint_in_any_order():
    """A changed reference, prompt or cluster is another set."""
    prompts = fingerprint("x", ITEMS)
    assert (prompts.n_items, prompts.n_clusters) == (10, 5)
    assert fingerprint("x", ITEMS[::-1]) == prompts
    for change in ({"reference": "?"}, {"prompt": "?"}, {"cluster": "other"}, {"stratum": "th"}):
        assert fingerprint("x", [dataclasses.replace(ITEMS[0], **change), *ITEMS[1:]]).sha256 != prompts.sha256


def test_items_are_read_from_json_lines(tmp_path):
    """Blank lines are skipped, Thai stays Thai, and each error names its line."""
    path = tmp_path / "items.jsonl"
    path.write_text(
        '{"id": "1", "prompt": "กรุงเทพฯ อยู่ที่ไหน"}\n\n{"id": "2", "prompt": "b", "reference": "x"}\n', "utf-8"
    )
    first, second = read_items(path)
    assert (first.prompt, first.cluster_id, second.reference) == ("กรุงเทพฯ อยู่ที่ไหน", "1", "x")
    path.write_text('{"id": "1", "prompt": "two\u2028lines"}\r\n', "utf-8")
    assert read_items(path)[0].prompt == "two\u2028lines"
    for text, says in [
        ('{"id": "1"}', "line 1 lacks 'prompt'"),
        ('{"id": "1", "prompt": "a"}\n{', "line 2 is not JSON"),
        ('{"id": "1", "prompt": "a"}\n{"id": "1", "prompt": "b"}', "two items are called '1'"),
        ('{"id": 1, "prompt": "a"}', "Give a text"),
        ("[]", "mapping"),
        ("", "no item"),
    ]:
        path.write_text(text)
        with pytest.raises(UsageError) as error:
            read_items(path)
        assert says in str(error.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_items(tmp_path / "absent")
