"""Contamination: calibration documents that contain an evaluation item, letter for letter.

Calibration text is meant to stand for a capability, not to show the test. Texts are compared by their letters and
digits alone, in lower case; evaluation texts of up to 25 such characters are too common to count. What is
found is passed over when windows are drawn (`without=` of `igsp.sample` and `igsp.mix`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from igsp.assets import cache_dir, cached_json
from igsp.scoring.evaluation import suite_items, suite_sha256
from igsp.text.catalogue import Document, documents, text_sha256

VERSION = 1  # of what counts as contained: raise it to find everything again
SHORTEST = 26  # letters and digits of an evaluation text that counts


def normalise(text: str) -> str:
    """Letters and digits of a text, in lower case."""
    return "".join(filter(str.isalnum, text.lower()))


def overlaps(sources: Mapping[str, Iterable[Document]], evaluation: Iterable[str]) -> dict[str, frozenset[str]]:
    """Per source, the ids of the documents that contain (or equal) one of the evaluation texts, normalised.

    Exact: every position of a document is looked up by its next `SHORTEST` characters, and what starts with the
    same ones is compared in full.
    """
    index: dict[str, set[str]] = {}
    for text in map(normalise, evaluation):
        if len(text) >= SHORTEST:
            index.setdefault(text[:SHORTEST], set()).add(text)
    return {
        name: frozenset(document.id for document in found if _contains(normalise(document.text), index))
        for name, found in sources.items()
    }


def _contains(text: str, index: Mapping[str, set[str]]) -> bool:
    starts = (i for i in range(len(text) - SHORTEST + 1) if text[i : i + SHORTEST] in index)
    return any(text.startswith(item, i) for i in starts for item in index[text[i : i + SHORTEST]])


@functools.cache
def evaluation_texts(suite: str | Path) -> frozenset[str]:
    """Every text of the items that a suite scores (`evaluation.suite_items`)."""
    return frozenset(text for texts in suite_items(suite).values() for text in texts)


@functools.cache
def contaminated(source: str, suite: str | Path) -> frozenset[str]:
    """Ids of the calibration documents of a source that contain an item of a suite; kept in the cache.

    Raises:
        UnknownName, UsageError, AssetError: as `sources.documents` and `evaluation.suite_items`.
    """
    made_from = [str(VERSION), text_sha256(source), suite_sha256(suite)]
    key = hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:16]
    path = cache_dir() / "contamination" / f"{source}-{key}.json"
    return frozenset(
        cached_json(path, lambda: sorted(overlaps({source: documents(source)}, evaluation_texts(suite))[source]))
    )


def contamination(source: str, suite: str | Path) -> tuple[int, int]:
    """How many calibration documents of a source contain an item of a suite, and how many there are in all."""
    return len(contaminated(source, suite)), len(documents(source))
