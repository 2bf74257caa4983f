"""Solvers that know nothing: what a multiple-choice score has to beat before it says anything about a model.

`longest` takes the longest choice, `overlap` the one that shares most words with the query, `trigram` the one
that a word-trigram model of the dimension's calibration text likes best.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from igsp.scoring.evaluation import Scores, TaskScore
from igsp.scoring.items import overlap
from igsp.scoring.suites import BITS_PER_BYTE, load_suite, task_folders
from igsp.text.catalogue import catalogue, documents
from igsp.text.rows import Row

TRAINING_WORDS = 200_000  # per source
Chooser = Callable[[Row], int]


def tokens(text: str) -> list[str]:
    """Words, numbers and single marks of a text, lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


class Trigram:
    """Word-trigram model with interpolated absolute discounting (discount 0.75) down to a uniform distribution."""

    def __init__(self, texts: Iterable[str], most_words: int) -> None:
        self.counts: list[Counter[tuple[str, ...]]] = [Counter(), Counter(), Counter()]
        self.totals: list[Counter[tuple[str, ...]]] = [Counter(), Counter(), Counter()]
        self.kinds: list[Counter[tuple[str, ...]]] = [Counter(), Counter(), Counter()]
        seen = 0
        for text in texts:
            words = tokens(text)
            for order in range(3):
                self.counts[order].update(zip(*(words[i:] for i in range(order + 1)), strict=False))
            seen += len(words)
            if seen >= most_words:
                break
        for order, counts in enumerate(self.counts):
            for gram, count in counts.items():
                self.totals[order][gram[:-1]] += count
                self.kinds[order][gram[:-1]] += 1

    def log_probability(self, query: str, choice: str) -> float:
        """Log-probability (nats) of the words of `choice` after `query`."""
        words = tokens(query)[-2:]
        total = 0.0
        for word in tokens(choice):
            total += math.log(self._probability(tuple(words[-2:]), word))
            words.append(word)
        return total

    def _probability(self, history: tuple[str, ...], word: str) -> float:
        value = 1 / (len(self.counts[0]) + 1)
        for order in range(len(history) + 1):
            context = history[len(history) - order :]
            if total := self.totals[order][context]:
                own = max(self.counts[order][(*context, word)] - 0.75, 0)
                value = (own + 0.75 * self.kinds[order][context] * value) / total
        return value


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _longest(row: Row) -> int:
    return _argmax([len(choice) for choice in row["choices"]])


def _overlap(row: Row) -> int:
    return _argmax([overlap(choice, row["query"]) for choice in row["choices"]])


def _trigram(model: Trigram, per_character: bool) -> Chooser:
    def choose(row: Row) -> int:
        scores = [model.log_probability(row["query"], choice) for choice in row["choices"]]
        return _argmax([s / len(c) for s, c in zip(scores, row["choices"], strict=True)] if per_character else scores)

    return choose


def accuracy(choose: Chooser, rows: Sequence[Row]) -> float:
    """Share of the rows on which a solver picks the right choice."""
    return sum(choose(row) == row["gold"] for row in rows) / len(rows)


def baselines(suite: str | Path = "quick", sources: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Trivial solvers on the multiple-choice tasks of a suite; a task whose choices are whole queries is left out.

    Args:
        sources: calibration sources for the trigram model; None: those that come with pinned or installed packages.

    Returns:
        One row per task: task, dimension, n, chance, longest, overlap, trigram (the better of summed and
        per-character log-probability), best (the highest of all four) and its standard error.

    Raises:
        UnknownName, UsageError: as `evaluation.load_suite`.
    """
    from igsp.scoring.tasks import load_task  # imports lm-eval, which takes seconds

    loaded = load_suite(suite)
    by_dimension: dict[str, list[str]] = {}
    for name, entry in catalogue().items():
        if name in sources if sources else entry.origin in ("wheel", "installed"):
            by_dimension.setdefault(entry.dimension, []).append(name)
    result = []
    models: dict[str, Trigram] = {}
    for task in loaded.tasks:
        if task.metric == BITS_PER_BYTE:
            continue
        if task.shots or task.runs_code:
            continue
        rows = _choice_rows(load_task(task.task, task_folders(loaded)), task.limit)
        if not rows:
            continue
        if task.dimension not in models:
            models[task.dimension] = _train(by_dimension.get(task.dimension, []))
        trigram = max(accuracy(_trigram(models[task.dimension], scaled), rows) for scaled in (False, True))
        solved = {"longest": accuracy(_longest, rows), "overlap": accuracy(_overlap, rows), "trigram": trigram}
        best = max(task.chance or 0.0, *solved.values())
        result.append({
            "task": task.task, "dimension": task.dimension, "n": len(rows), "chance": task.chance, **solved,
            "best": best, "stderr": math.sqrt(best * (1 - best) / len(rows)),
        })
    return result


def _choice_rows(task: Any, limit: int | None) -> list[Row]:
    """Query, choices and index of the right one of a task's first rows; none if it is not of that form."""
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input:
        return []
    rows = []
    for row in itertools.islice(task.eval_docs, limit):
        choices, gold = task.doc_to_choice(row), task.doc_to_target(row)
        gold = choices.index(gold) if isinstance(gold, str) else gold
        rows.append({"query": task.doc_to_text(row), "choices": choices, "gold": gold})
    return rows


def _train(sources: Sequence[str]) -> Trigram:
    texts = (document.text for name in sources for document in _first_words(name))
    return Trigram(texts, TRAINING_WORDS * len(sources))


def _first_words(source: str) -> Iterable[Any]:
    """Calibration documents of a source up to about `TRAINING_WORDS` words, counted as 5 characters each."""
    characters = 0
    for document in documents(source, "calibration"):
        yield document
        characters += len(document.text)
        if characters > 5 * TRAINING_WORDS:
            return


def unigram(suite: str | Path, model: str) -> Scores:
    """Scores, on the texts of a suite, of a model that knows how often each of their tokens occurs and nothing else.

    Fitted on the other pieces of the same task: the bits that a dense model saves over it are what it knows beyond the
    frequencies of words, the 100 % of `knowledge` retention.

    Raises:
        AssetError: a text or the tokenizer cannot be had.
    """
    from transformers import AutoTokenizer

    from igsp.models import resolve_folder, tokenizer_fingerprint
    from igsp.scoring.tasks import load_task

    tokenizer, loaded = AutoTokenizer.from_pretrained(resolve_folder(model)), load_suite(suite)
    tasks = []
    for entry in (task for task in loaded.tasks if task.metric == BITS_PER_BYTE):
        task = load_task(entry.task, task_folders(loaded))
        texts = [task.doc_to_target(row) for row in list(task.eval_docs)[: entry.limit]]
        bits = unigram_bits([tokenizer.encode(text, add_special_tokens=False) for text in texts], len(tokenizer))
        sizes = np.array([len(text.encode()) for text in texts], float)
        value = bits.sum() / sizes.sum()
        stderr = float((bits - value * sizes).std(ddof=1) * len(sizes) ** 0.5 / sizes.sum())
        items = tuple((round(float(b), 3), float(s)) for b, s in zip(bits, sizes, strict=True))
        about = (entry.task, entry.dimension, BITS_PER_BYTE, float(value), len(items), stderr, None, False, items)
        tasks.append(TaskScore(*about))
    return Scores("unigram", str(suite), tuple(tasks), {"tokenizer": tokenizer_fingerprint(tokenizer)})


def unigram_bits(pieces: Sequence[Sequence[int]], vocabulary: int) -> np.ndarray:
    """Bits `[pieces]` of each piece under the token frequencies of all others.

    Absolute discounting (0.75), interpolated with a uniform distribution over the vocabulary.

    >>> unigram_bits([[0, 1], [0, 0]], 4).round(2).tolist()
    [3.89, 3.36]
    """
    counts = [Counter(piece) for piece in pieces]
    every = sum(counts, Counter[int]())
    found = []
    for piece in counts:
        rest = every - piece
        total, spare = rest.total(), 0.75 * len(rest) / vocabulary
        found.append(-sum(n * math.log2((max(rest[t] - 0.75, 0) + spare) / total) for t, n in piece.items()))
    return np.array(found)
