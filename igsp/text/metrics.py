"""Objective Information Theory (OIT) metrics of a calibration set: one value per name.

The framework (Xu et al.) measures information by eleven quantities. Which formulas the paper used for
text is unknown but for two names, calibration perplexity and 4-gram aggregation; every formula below is
therefore our definition. Delay, duration and sampling rate are not defined for static text.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.spatial.distance import jensenshannon

from igsp.models import LanguageModel
from igsp.text import ngrams
from igsp.text.likelihood import window_losses
from igsp.text.windows import CalibrationSet, vocabulary_size

# Of the metrics of a set. Whoever changes these numbers raises it: tests/test_golden.py.
VERSION = 1

# name -> what it is; the order is that of every table. `constant` ones stay out of the correlations.
METRICS = {
    "calibration_perplexity": "distortion: exp of the dense model's mean loss per token on exactly these windows",
    "aggregation_4": "aggregation: share of 4-gram occurrences that repeat an earlier one, A4 = 1 - distinct / total",
    "variety": "variety: distinct token types",
    "entropy": "variety, weighted: Shannon entropy of the unigram distribution, bits per token",
    "scope": "scope: distinct documents in the set",
    "coverage": "coverage: share of the tokens of held-out text of all dimensions whose type occurs in the set",
    "mismatch": "mismatch: Jensen-Shannon distance (base 2) of the set's unigrams to held-out text of all dimensions",
    "aggregation_1": "aggregation of order 1",
    "aggregation_2": "aggregation of order 2",
    "aggregation_3": "aggregation of order 3",
    "granularity": "granularity: mean tokens per document piece",
    "volume": "volume: tokens in the set (constant by construction)",
}
# Ranked against retention: one value per idea. The lower aggregation orders, granularity (the inverse of
# scope up to a constant) and volume (constant) would only add tests.
CORRELATED = ("calibration_perplexity", "aggregation_4", "variety", "entropy", "scope", "coverage", "mismatch")


def profile(
    calibration: CalibrationSet,
    lm: LanguageModel,
    reference: Mapping[str, np.ndarray] | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """OIT metrics of a calibration set, by name (`METRICS` says what each one is).

    Args:
        reference: per dimension, token counts `[vocabulary]` of held-out text (`reference_counts`); without it
            coverage, mismatch and the `mismatch_<dimension>` values are left out.

    Raises:
        TokenizerMismatch, UsageError: the set does not fit the model.
    """
    calibration.check(lm)
    ids = calibration.input_ids
    counts = np.bincount(ids.numpy().ravel(), minlength=vocabulary_size(lm))
    pieces = sum(len(window.documents) for window in calibration.windows)
    losses = window_losses(lm, ids, progress=progress)
    values = {
        "calibration_perplexity": float(np.exp(losses.mean())),
        "variety": float((counts > 0).sum()),
        "entropy": entropy(counts),
        "scope": float(len({d for window in calibration.windows for d in window.documents})),
        "granularity": ids.numel() / pieces,
        "volume": float(ids.numel()),
    }
    for order in (1, 2, 3, 4):
        values[f"aggregation_{order}"] = aggregation(calibration, order)
    if reference:
        pooled = np.mean([c / c.sum() for c in reference.values()], axis=0)
        values["coverage"] = float(pooled[counts > 0].sum())
        values["mismatch"] = float(jensenshannon(counts, pooled, base=2))
        for dimension, expected in reference.items():
            values[f"mismatch_{dimension}"] = float(jensenshannon(counts, expected, base=2))
    known = [name for name in METRICS if name in values]
    return {name: values[name] for name in known} | {k: v for k, v in values.items() if k not in METRICS}


def aggregation(calibration: CalibrationSet, order: int = 4) -> float:
    """`A_n = 1 - distinct / total` n-grams within windows, in tokens: 0 is no repeat (our definition).

    With n-gram occurrences as states and one relation per occurrence that repeats an earlier one, this is
    relations per state, OIT's reading of aggregation.
    """
    return ngrams.aggregation(calibration.input_ids, order)


def entropy(counts: np.ndarray) -> float:
    """Shannon entropy in bits of the distribution that counts `[types]` stand for."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def reference_counts(texts: Mapping[str, list[str]], lm: LanguageModel) -> dict[str, np.ndarray]:
    """Token counts `[vocabulary]` of held-out texts, per dimension."""
    size = vocabulary_size(lm)
    return {
        dimension: np.bincount(
            np.concatenate([lm.tokenizer.encode(text, add_special_tokens=False) for text in pieces]), minlength=size
        )
        for dimension, pieces in texts.items()
    }
