"""How far two prunings agree on what to remove, from a small fixed sample of positions.

A mask of a 100-million-weight model is 13 MB; the same few thousand positions, looked up in every mask, tell the
agreement of any two with a standard error below half a point and fit into a result record.
"""

from __future__ import annotations

import base64

import numpy as np

from igsp.errors import UsageError
from igsp.pruning.report import PruneReport

POSITIONS = 16384


def mask_sample(report: PruneReport, positions: int = POSITIONS) -> str:
    """Whether each of about `positions` weights was removed, as bits in base64.

    The positions are the same for every pruning of one model: each Linear gives its share of them, drawn with
    replacement by a stream of its place in the model.
    """
    bits = []
    for place, module in enumerate(report.modules):
        size = module.rows * module.columns
        drawn = np.random.default_rng([0, place]).integers(size, size=round(positions * size / report.weights))
        bits.append(report.mask(module.name).flatten().numpy()[drawn])
    return base64.b64encode(np.packbits(np.concatenate(bits)).tobytes()).decode()


def overlap(a: str, b: str) -> float:
    """Share of the sampled weights removed by `a` that `b` removes too; by chance alone it is `b`'s sparsity.

    Raises:
        UsageError: samples of different models.
    """
    left, right = (np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8)) for text in (a, b))
    if len(left) != len(right):
        raise UsageError(f"mask samples of different models: {len(left)} and {len(right)} positions")
    return float((left & right).sum() / left.sum())
