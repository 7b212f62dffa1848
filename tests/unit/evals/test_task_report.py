"""Task quality: files as their publishers write them, paired differences, and the claims beside.

Seed features: S1.34
"""

import json
from typing import Any

import pytest

from tapwb.core.errors import UnknownName, UsageError
from tapwb.core.precision import parse_precision, parse_precisions
from tapwb.core.reading import Reading, Unavailable
from tapwb.evals.choices import evaluate_choices
from tapwb.evals.session import ComparisonSession
from tapwb.evals.task_items import FORMATS, NEEDS_SANDBOX, first_answer, last_number, read_task
from tapwb.evals.task_report import TaskReport, claimed_scores, evaluate_tasks
from tapwb.metrics.quality import nll_nats

MODEL = "tiny-random-gpt2"
ROWS: dict[str, list[dict[str, Any]]] = {
    "hellaswag": [
        {"ctx": "The star bends", "endings": ["light", "a very long sentence about nothing", "x"], "label": 0},
        {"ctx": "Count: 1, 2, 3,", "endings": [" 4, 5", "9"], "label": "1"},
    ],
    "mmlu": [
        {"question": "Which is a star?", "choices": ["Moon", "Sun", "Mars", "Io"], "answer": 1, "subject": "astronomy"},
        {"question": "2 + 2 = ?", "choices": ["3", "4"], "answer": "B"},
    ],
    "gsm8k": [{"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}] * 2,
    "humaneval": [{"task_id": "x/0", "prompt": "def f(x):\n", "canonical_solution": "    return x\n", "test": ""}],
}


@pytest.fixture(scope="module")
def report() -> TaskReport:
    """All four tasks on a tiny random model."""
    tasks = [read_task(name, rows) for name, rows in ROWS.items()]
    return evaluate_tasks(MODEL, tasks, parse_precisions("16,4"), max_new_tokens=4)


def rows_of(report: TaskReport, task: str) -> list[Any]:
    """Its rows, the weights as loaded first."""
    return [row for row in report.rows if row.task == task]


def test_every_task_has_a_row_a_precision_with_paired_differences(report):
    """The weights as loaded are what the others are compared with; nothing is missing."""
    assert report.missing == {}
    for name in ROWS:
        base, low = rows_of(report, name)
        assert (base.precision, base.mean_bits, low.precision, low.mean_bits) == ("16", 16.0, "4", 4.0)
        assert base.n == low.n == len(ROWS[name])
        assert isinstance(base.difference, Unavailable)
    low = rows_of(report, "mmlu")[1]
    assert isinstance(low.difference, Reading)
    assert low.difference.ci95[0] <= low.difference.value <= low.difference.ci95[1]


def test_hellaswag_counts_what_choices_count(report):
    """The same share as `tapwb eval choices` on the same items."""
    known = evaluate_choices(MODEL, ROWS["hellaswag"], parse_precisions("16,4")).rows
    assert [float(row.score) for row in rows_of(report, "hellaswag")] == [row.acc_norm for row in known]


def test_the_pass_rate_is_not_guessed(report):
    """HumanEval has no score, with the reason, but the likelihood of its reference answers."""
    low = rows_of(report, "humaneval")[1]
    assert low.score is low.difference is NEEDS_SANDBOX
    assert isinstance(low.answer_perplexity_ratio, Reading)


def test_the_answers_perplexity_is_that_of_their_tokens(report):
    """By hand: the reference solution after its prompt, at 4 bits over the weights as loaded."""
    session = ComparisonSession(MODEL, [parse_precision("4")])
    item = ROWS["humaneval"][0]
    start = len(item["prompt"].encode())
    ids = session.engine.tokenize(item["prompt"] + item["canonical_solution"].strip("\n") + "\n")
    losses = [
        nll_nats(logits[start - 1 : -1], ids[0, start:]).mean()
        for logits in (session.run(ids, parse_precision("4")).logits, session.reference(ids))
    ]
    found = rows_of(report, "humaneval")[1].answer_perplexity_ratio
    assert float(found) == pytest.approx(float((losses[0] - losses[1]).exp()), rel=1e-4)


def test_the_json_keeps_numbers_beside_their_intervals(report):
    """Plain JSON; claims and provenance stand beside the rows."""
    data = json.loads(json.dumps(report.to_json()))
    assert set(data) == {"results", "missing", "claimed", "provenance"}
    assert data["provenance"]["model_id"] == MODEL
    assert {"unavailable"} == set(data["results"][-1]["score"])


def test_the_claims_are_the_ledgers():
    """Seven rows of the source document, three figures each, none invented."""
    claims = {(claim.model, claim.task): claim for claim in claimed_scores()}
    assert len(claims) == 7
    assert claims["Llama-2-13B", "hellaswag"].difference == "-0.6%"
    assert claims["Mistral-7B", "mmlu"].base == "62.5%"


def test_a_task_without_items_says_what_to_give():
    """Every other task is missing with the form of its file."""
    task = read_task("hellaswag", ROWS["hellaswag"][:1])
    missing = evaluate_tasks(MODEL, [task], [parse_precision("8")]).missing
    assert set(missing) == set(FORMATS) - {"hellaswag"}
    assert all(f"--task {name}=FILE" in reason.reason for name, reason in missing.items())


def test_letters_stand_for_choices():
    """MMLU's question is shown with its choices, and the letter of the right one is scored."""
    item = read_task("mmlu", ROWS["mmlu"]).choices[0]
    assert item.context == "Which is a star?\nA. Moon\nB. Sun\nC. Mars\nD. Io\nAnswer:"
    assert item.endings[item.label] == "B"


def test_sums_are_decided_by_their_last_number():
    """Separators, fractions, signs; a model's next question is not its answer."""
    assert [last_number(text) for text in ("so 1,234.50 in all.", "it is -7", "none", "1 of 2")] == [
        "1234.5", "-7", None, "2",
    ]  # fmt: skip
    assert last_number(first_answer(" 12 apples.\nQuestion: how many are 99?\nAnswer: 5")) == "12"
    assert read_task("gsm8k", ROWS["gsm8k"]).written[0].solution == "2 + 2 = 4\n#### 4"


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("hellaswag", {"ctx": "a"}),
        ("mmlu", {"question": "q", "choices": ["a", "b"], "answer": 2}),
        ("mmlu", {"question": "q", "choices": "ab", "answer": 0}),
        ("mmlu", {"choices": ["a", "b"], "answer": 0}),
        ("gsm8k", {"question": "q", "answer": "4"}),
        ("gsm8k", {"question": "q", "answer": "#### none"}),
        ("humaneval", {"prompt": "p"}),
        ("humaneval", {"prompt": " ", "canonical_solution": "x"}),
    ],
)
def test_a_line_of_another_shape_is_named(name, row):
    """With its number, before a model is loaded."""
    with pytest.raises(UsageError, match="item 2 is not"):
        read_task(name, [ROWS[name][0], row])


def test_unknown_empty_and_repeated_tasks_are_refused():
    """With the names there are."""
    with pytest.raises(UnknownName, match="hellaswag, mmlu"):
        read_task("arc", [{}])
    with pytest.raises(UsageError, match="no items"):
        read_task("mmlu", [])
    task = read_task("mmlu", ROWS["mmlu"])
    for tasks in ([], [task, task]):
        with pytest.raises(UsageError, match="at most once"):
            evaluate_tasks("no-such-model", tasks, [parse_precision("8")])
