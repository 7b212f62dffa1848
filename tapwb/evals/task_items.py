"""The four task sets of the first source document, read as their publishers write them.

None of them can come with the program (their licences and sizes forbid it), so a user gives the files: JSON lines with
the keys of the public releases. What cannot be scored is said, not guessed: a HumanEval answer passes when its tests
run, and running code that a model wrote needs a sandbox, which this program is not.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tapwb.core.errors import UnknownName, UsageError
from tapwb.core.reading import Unavailable
from tapwb.evals.choices import ChoiceItem, check_item

_LETTERS = "ABCDEFGHIJ"
#: The last number of an answer, with thousands separators and a sign.
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
NEEDS_SANDBOX = Unavailable(
    "an answer passes when its tests run, and code that a model wrote is not run here. Write the answers with "
    "tapwb run and judge them in a sandbox of yours"
)


@dataclass(frozen=True, slots=True)
class WrittenItem:
    """A question whose answer is written out.

    Attributes:
        prompt: What the model continues.
        solution: The reference answer.
        number: The number it ends in, as text without separators; ``None`` where numbers do not decide.
    """

    prompt: str
    solution: str
    number: str | None


@dataclass(frozen=True, slots=True)
class TaskFormat:
    """How one task set is written and scored.

    Attributes:
        title: As people call it.
        shape: One line of its file.
        metric: What its score is: ``acc_norm``, ``acc``, ``exact_match`` or ``pass@1``.
    """

    title: str
    shape: str
    metric: str


FORMATS = {
    "hellaswag": TaskFormat("HellaSwag", '{"ctx": text, "endings": [text, ...], "label": 0}', "acc_norm"),
    "mmlu": TaskFormat("MMLU", '{"question": text, "choices": [text, ...], "answer": 0 or "A"}', "acc"),
    "gsm8k": TaskFormat("GSM8K", '{"question": text, "answer": "... #### 42"}', "exact_match"),
    "humaneval": TaskFormat("HumanEval", '{"prompt": text, "canonical_solution": text}', "pass@1"),
}


@dataclass(frozen=True, slots=True)
class Task:
    """One task set, read.

    Attributes:
        name: Out of ``FORMATS``.
        choices: Its questions with endings to choose from, or
        written: its questions with an answer to write.
    """

    name: str
    choices: tuple[ChoiceItem, ...] = ()
    written: tuple[WrittenItem, ...] = ()

    @property
    def metric(self) -> str:
        """What its score is."""
        return FORMATS[self.name].metric

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.choices) + len(self.written)


def read_task(name: str, rows: Sequence[Mapping[str, Any]]) -> Task:
    """Make a task of the lines of its file.

    Args:
        name: Out of ``FORMATS``.
        rows: One object a line.

    Raises:
        UnknownName: If there is no such task.
        UsageError: If there is no line, or one is not of the task's shape; names it.
    """
    if name not in FORMATS:
        raise UnknownName(f"no task {name!r}. Known: {', '.join(FORMATS)}.")
    if not rows:
        raise UsageError(f"{name} has no items. Give at least one line {FORMATS[name].shape}.")
    numbered = list(enumerate(rows, start=1))
    if name == "hellaswag":
        return Task(name, choices=tuple(check_item(row, line) for line, row in numbered))
    if name == "mmlu":
        return Task(name, choices=tuple(_lettered(row, line) for line, row in numbered))
    make = _sum_in_words if name == "gsm8k" else _function
    return Task(name, written=tuple(make(row, line) for line, row in numbered))


def last_number(text: str) -> str | None:
    """The last number of a text without thousands separators and trailing zeros of a fraction, or ``None``."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    number = str(found[-1]).replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def first_answer(text: str) -> str:
    """What a model wrote, up to where it goes on to ask itself the next question."""
    return re.split(r"\n\s*Question:|\n\s*\n", text.strip(), maxsplit=1)[0]


def _lettered(row: Mapping[str, Any], line: int) -> ChoiceItem:
    """Zero-shot, as lm-evaluation-harness writes it: the choices behind letters, and the letter is what is scored."""
    question, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
    if isinstance(answer, str) and len(answer) == 1 and answer in _LETTERS:
        answer = _LETTERS.index(answer)
    if isinstance(answer, str) and answer.isdigit():
        answer = int(answer)
    texts = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    if not isinstance(question, str) or not texts or not isinstance(choices, list) or len(choices) > len(_LETTERS):
        raise UsageError(f"item {line} is not of the shape {FORMATS['mmlu'].shape}.")
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))
    context = f"{question.strip()}\n{listed}\nAnswer:"
    return check_item({"ctx": context, "endings": list(_LETTERS[: len(choices)]), "label": answer}, line)


def _sum_in_words(row: Mapping[str, Any], line: int) -> WrittenItem:
    question, answer = row.get("question"), row.get("answer")
    marked = isinstance(answer, str) and "####" in answer
    number = last_number(str(answer).rpartition("####")[2]) if marked else None
    if not isinstance(question, str) or not question.strip() or number is None:
        raise UsageError(f"item {line} is not of the shape {FORMATS['gsm8k'].shape}.")
    # The marks <<3*4=12>> are for a calculator that no model here has.
    solution = re.sub(r"<<[^>]*>>", "", str(answer)).strip()
    return WrittenItem(f"Question: {question.strip()}\nAnswer:", solution, number)


def _function(row: Mapping[str, Any], line: int) -> WrittenItem:
    prompt, solution = row.get("prompt"), row.get("canonical_solution")
    if not isinstance(prompt, str) or not isinstance(solution, str) or not prompt.strip() or not solution.strip():
        raise UsageError(f"item {line} is not of the shape {FORMATS['humaneval'].shape}.")
    return WrittenItem(prompt, solution, None)
