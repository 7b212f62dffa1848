"""Multiple choice by log-likelihood, against a brute-force computation.

Seed features: S1.34
"""

import math
from typing import Any

import pytest
import torch

from tapwb.core.errors import PromptTooLong, UsageError
from tapwb.core.precision import parse_precision, parse_precisions
from tapwb.evals.choices import ChoiceTable, evaluate_choices
from tapwb.models.load import load_model

ITEMS: list[dict[str, Any]] = [
    {"ctx": "The star bends", "endings": ["light", "a very long sentence about nothing", "x"], "label": 0},
    {"ctx": "Count: 1, 2, 3,", "endings": [" 4, 5", "9", "zebra zebra"], "label": "1"},
    {"ctx": "ภาษา ", "endings": ["ไทย", "abc"], "label": 1},
    {"ctx": "Once upon a", "endings": ["time", "dime", "lime", "q"], "label": 3},
]


def _gap(item: dict[str, Any], ending: str) -> str:
    return "" if item["ctx"][-1].isspace() or ending[0].isspace() else " "


@pytest.fixture(scope="module")
def brute() -> list[list[float]]:
    """Log-likelihood of each ending, byte by byte, from the model as loaded."""
    model: Any = load_model("tiny-random-gpt2", dtype="float32").model
    out = []
    for item in ITEMS:
        sums = []
        for ending in item["endings"]:
            context, tail = item["ctx"].encode(), (_gap(item, ending) + ending).encode()
            total = 0.0
            for i, byte in enumerate(tail):
                with torch.no_grad():
                    logits = model(torch.tensor([list(context + tail[:i])])).logits[0, -1]
                total += float(logits.double().log_softmax(-1)[byte])
            sums.append(total)
        out.append(sums)
    return out


@pytest.fixture(scope="module")
def table() -> ChoiceTable:
    """At 16 and 8 bits, and by a plan."""
    return evaluate_choices("tiny-random-gpt2", ITEMS, parse_precisions("16,8,adaptive:5.5:entropy"))


def test_the_accuracy_is_that_of_brute_force(table, brute):
    """Raw and per character of the ending, without the space before it."""
    right = norm = 0
    for item, sums in zip(ITEMS, brute, strict=True):
        lengths = [len(ending) for ending in item["endings"]]
        normed = [total / n for total, n in zip(sums, lengths, strict=True)]
        right += sums.index(max(sums)) == int(item["label"])
        norm += normed.index(max(normed)) == int(item["label"])
    assert (table.rows[0].acc, table.rows[0].acc_norm) == (right / 4, norm / 4)


def test_rows_carry_their_number_their_error_and_their_bits(table):
    """Binomial standard errors of both shares; chance is the mean of one over the endings."""
    for row, mean in zip(table.rows, (16.0, 8.0, 5.5), strict=True):
        assert row.n == 4
        assert row.stderr == pytest.approx(math.sqrt(row.acc_norm * (1 - row.acc_norm) / 4))
        assert row.stderr_acc == pytest.approx(math.sqrt(row.acc * (1 - row.acc) / 4))
        assert row.mean_bits == pytest.approx(mean, abs=0.2)
    assert table.chance == pytest.approx((1 / 3 + 1 / 3 + 1 / 2 + 1 / 4) / 4)
    assert set(table.to_json()["results"][0]) >= {"precision", "acc", "acc_norm", "n", "stderr"}


def test_the_label_decides():
    """With the label on each ending in turn, exactly one is right, raw and normalised."""
    item = ITEMS[0]
    shares = []
    for label in range(3):
        row = evaluate_choices("tiny-random-gpt2", [item | {"label": label}], [parse_precision("8")]).rows[0]
        shares.append((row.acc, row.acc_norm))
    assert sorted(acc for acc, _ in shares) == [0, 0, 1]
    assert sorted(norm for _, norm in shares) == [0, 0, 1]


@pytest.mark.parametrize(
    "broken",
    [
        {"endings": ["a", "b"], "label": 0},
        {"ctx": "", "endings": ["a", "b"], "label": 0},
        {"ctx": "c", "endings": ["a"], "label": 0},
        {"ctx": "c", "endings": ["a", ""], "label": 0},
        {"ctx": "c", "endings": "ab", "label": 0},
        {"ctx": "c", "endings": ["a", "b"], "label": 2},
        {"ctx": "c", "endings": ["a", "b"], "label": -1},
        {"ctx": "c", "endings": ["a", "b"], "label": "x"},
        {"ctx": "c", "endings": ["a", "b"], "label": True},
        {"ctx": "c", "endings": ["a", "b"]},
    ],
)
def test_a_malformed_item_is_named_by_its_line(broken):
    """Before a model is loaded, in one line."""
    with pytest.raises(UsageError, match="item 2 ") as caught:
        evaluate_choices("no-such-model", [ITEMS[0], broken], [parse_precision("8")])
    assert "\n" not in str(caught.value)


def test_no_items_is_refused():
    """With the form of a line."""
    with pytest.raises(UsageError, match="ctx, endings, label"):
        evaluate_choices("no-such-model", [], [parse_precision("8")])


def test_an_item_longer_than_the_context_is_refused():
    """Not answered from positions the model does not have."""
    long = {"ctx": "x" * 600, "endings": ["a", "b"], "label": 0}
    with pytest.raises(PromptTooLong, match="512"):
        evaluate_choices("tiny-random-gpt2", [long], [parse_precision("8")])
