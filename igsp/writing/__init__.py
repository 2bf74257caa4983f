"""Protocols that make a calibration set from the model itself: Self-Cal, SGS and IGSP, and baselines of selection."""

from __future__ import annotations

from igsp.writing.choices import activation_kmeans, lexical_diversity, lowest_perplexity, random_choice
from igsp.writing.igsp import Selection, Step, candidate_pool, igsp, igsp_selection, select
from igsp.writing.pool import CandidatePool, NotEnoughCandidates, screen
from igsp.writing.self_cal import self_cal
from igsp.writing.sgs import sgs

__all__ = [
    "CandidatePool", "NotEnoughCandidates", "Selection", "Step", "activation_kmeans", "candidate_pool", "igsp",
    "igsp_selection", "lexical_diversity", "lowest_perplexity", "random_choice", "screen", "select", "self_cal", "sgs",
]

# Of what a model writes, and what a rule chooses of it. Whoever changes these numbers raises it: tests/test_golden.py.
VERSION = 1
