"""The prose is spelt right: British English by aspell's dictionary, and the book's own list of further words.

A new word that is right goes into `book/wordlist.txt`, one a line, in lower case.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ["*.md", "book/*.md", "book/slides/*.md", "notebooks/*.py", "book/exercises/*.py"]
PAGES = [page for place in PLACES for page in ROOT.glob(place) if page.stem != "api"]  # that one lists names of code
ASPELL = ["aspell", "--lang=en_GB", "--encoding=utf-8", "list"]
DIRECTIVE = re.compile(r"^```\{[\w-]+\}([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)  # its content is prose
NAMES = re.compile(r"^```\{(?:shown|code-block)\}[^\n]*|<[/\w][^>\n]*>", re.MULTILINE)  # of notebooks, languages, HTML
NOT_PROSE = [
    r"(?ms)^```.*?^```$", r"(?s)\$\$.*?\$\$(?: \([\w-]+\))?", r"\$[^$]{1,200}\$",
    r"\{(?:cite:?\w*|eq|result|numref|doc|ref|file)\}`[^`]*`", r"\{[\w:-]+\}(?=`)", r"(?<!\w)`[^`\n]+`",
    r"\]\([^)]*\)", r"https?://\S+", r"(?m)^:[\w-]+:.*$", r"(?m)^:{3,}.*$", r"(?m)^\([\w-]+\)=$", r"\w*[\d_/]\w*",
]


def prose(path: Path) -> str:
    """What a page says: of Python files the task or the Markdown cells, without code, formulas, targets and links."""
    text = path.read_text(encoding="utf8")
    if path.parent.name == "exercises":
        text = text.split('"""')[1]
    elif path.suffix == ".py":
        cells = re.findall(r"^# %% \[markdown\]\n((?:#.*\n)+)", text, re.MULTILINE)
        text = re.sub(r"(?m)^# ?", "", "\n".join(cells))
    text = DIRECTIVE.sub(r"\1\n\2", NAMES.sub("", text))
    for pattern in NOT_PROSE:
        text = re.sub(pattern, " ", text)
    return text


@pytest.mark.skipif(shutil.which("aspell") is None, reason="aspell is not installed (apt-get install aspell aspell-en)")
def test_every_word_is_known() -> None:
    own = set((ROOT / "book" / "wordlist.txt").read_text(encoding="utf8").split())
    unknown = {}
    for path in PAGES:
        listed = subprocess.run(ASPELL, input=prose(path), capture_output=True, text=True, check=True).stdout.split()
        wrong = sorted({word for word in listed if word.lower().removesuffix("'s") not in own})
        if wrong:
            unknown[path.name] = wrong
    assert not unknown


def test_the_list_of_words_is_in_order() -> None:
    words = (ROOT / "book" / "wordlist.txt").read_text(encoding="utf8").split("\n")
    assert words.pop() == "" and words == sorted(set(words)) and all(word == word.lower() for word in words)
