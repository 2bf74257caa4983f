"""Questions of a quiz, read from YAML: entries with `question`, `options` (right ones as `right: text`) and `why`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from igsp.errors import UsageError


@dataclass(frozen=True)
class Option:
    text: str
    right: bool


@dataclass(frozen=True)
class Question:
    """A question with at least one right and one wrong option, and the reason for the answer."""

    text: str
    options: tuple[Option, ...]
    why: str


def questions(text: str) -> list[Question]:
    """The questions of a quiz; raises `UsageError` that names the one that is not complete."""
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"a quiz is a YAML list of questions: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise UsageError("a quiz is a YAML list of questions, with `question`, `options` and `why`")
    return [_question(entry, number) for number, entry in enumerate(entries, 1)]


def _question(entry: Any, number: int) -> Question:
    if not isinstance(entry, dict) or set(entry) != {"question", "options", "why"}:
        raise UsageError(f"question {number} of the quiz needs exactly `question`, `options` and `why`")
    options = tuple(
        Option(str(option["right"] if isinstance(option, dict) else option), isinstance(option, dict))
        for option in entry["options"]
    )
    if not 0 < sum(option.right for option in options) < len(options):
        raise UsageError(f"question {number} of the quiz needs a right option (`right: text`) and a wrong one")
    return Question(str(entry["question"]), options, str(entry["why"]))
