"""Other ways to choose from the same candidate pool, at the same quotas: a gain over them is not the pool's."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from igsp.errors import UsageError
from igsp.models import LanguageModel, tokenizer_fingerprint
from igsp.text.ngrams import Coverage
from igsp.writing.common import defaults, text_seed
from igsp.writing.igsp import Selection
from igsp.writing.pool import CandidatePool, quotas

TOKENS_PER_PASS = 4096


def random_choice(pool: CandidatePool, n: int, seed: int = 0) -> Selection:
    """Windows drawn at random under the quotas. Raises `NotEnoughCandidates`, as all of these do."""
    stream = np.random.default_rng(text_seed("random", seed))
    chosen = [stream.choice(rows, count, replace=False) for rows, count in _groups(pool, n)]
    return _selection(pool, np.concatenate(chosen), n, "random", seed=seed)


def lowest_perplexity(pool: CandidatePool, n: int) -> Selection:
    """In each dimension the windows that the model finds most likely."""
    losses = pool.log_perplexity.numpy()
    chosen = [rows[np.argsort(losses[rows], kind="stable")[:count]] for rows, count in _groups(pool, n)]
    return _selection(pool, np.concatenate(chosen), n, "lowest_perplexity")


def lexical_diversity(pool: CandidatePool, lm: LanguageModel, n: int) -> Selection:
    """ZipCal-like (arXiv 2603.16105, released code at 846d72b): greedy coverage of words not seen yet.

    Words are runs of letters and digits, in lower case; dimensions take turns, which is ours.
    """
    if pool.tokenizer != tokenizer_fingerprint(lm.tokenizer):
        raise UsageError(f"this pool was written with another tokenizer than that of '{lm.name}'")
    vocabulary: dict[str, int] = {}
    texts = [re.findall(r"\w+", str(lm.tokenizer.decode(row)).lower()) for row in pool.input_ids.tolist()]
    words = [[vocabulary.setdefault(word, len(vocabulary)) for word in text] or [0] for text in texts]
    keys = np.zeros((len(words), max(map(len, words))), dtype=np.uint64)
    for row, ids in enumerate(words):
        keys[row] = np.resize(ids, keys.shape[1])  # repeats fill the row; they cover nothing more
    coverage = Coverage(keys)
    groups = _groups(pool, n)
    left = [list(map(int, rows)) for rows, _ in groups]
    chosen: list[int] = []
    for turn in range(max(count for _, count in groups)):
        for rows, (_, count) in zip(left, groups, strict=True):
            if turn < count:
                best = max(rows, key=coverage.gain)
                coverage.add(best)
                rows.remove(best)
                chosen.append(best)
    return _selection(pool, np.array(chosen), n, "lexical_diversity")


def activation_kmeans(
    pool: CandidatePool, lm: LanguageModel, n: int, seed: int = 0, progress: bool = True
) -> Selection:
    """COLA-like (arXiv 2510.10618, released code at a499222): spread out in the space of activations.

    Hidden states at a few depths are averaged over each window, scaled to length 1, joined and projected at
    random; in each dimension k-means with k = quota, and the window nearest to each centre. Depths, the k-means
    settings and the quotas are ours.
    """
    settings = defaults("cola_like")
    points = _projected(activation_features(pool, lm, settings["layers"], progress), settings["projection"], seed)
    stream = np.random.default_rng(text_seed("k-means", seed))
    chosen = [rows[_centres(points[rows], count, settings["iterations"], stream)] for rows, count in _groups(pool, n)]
    return _selection(pool, np.concatenate(chosen), n, "activation_kmeans", seed=seed, **settings)


def activation_features(
    pool: CandidatePool, lm: LanguageModel, depths: list[float], progress: bool = True
) -> NDArray[np.float32]:
    """Mean hidden state of each window at some depths (1: the last layer), each of length 1: `[n, depths * hidden]`."""
    if pool.tokenizer != tokenizer_fingerprint(lm.tokenizer):
        raise UsageError(f"this pool was written with another tokenizer than that of '{lm.name}'")
    size = max(1, TOKENS_PER_PASS // pool.seqlen)
    features = []
    with torch.inference_mode():
        for rows in tqdm(pool.input_ids.split(size), desc="activations", unit="batch", disable=not progress):
            states = lm.model.get_decoder()(
                input_ids=rows.to(lm.device), use_cache=False, output_hidden_states=True
            ).hidden_states
            picked = [states[round(depth * (len(states) - 1))].float().mean(1) for depth in depths]
            features.append(torch.cat([torch.nn.functional.normalize(p, dim=1) for p in picked], 1).cpu())
    return torch.cat(features).numpy()


def _projected(features: NDArray[np.float32], size: int, seed: int) -> NDArray[np.float64]:
    stream = np.random.default_rng(text_seed("projection", seed))
    return features @ stream.normal(size=(features.shape[1], size)) / np.sqrt(size)


def _centres(points: NDArray[np.float64], k: int, iterations: int, stream: np.random.Generator) -> NDArray[np.int64]:
    """k-means (k-means++ start, Lloyd steps); the point nearest to each centre, no point twice, `[k]`."""
    centres = points[[int(stream.integers(len(points)))]]
    while len(centres) < k:
        apart = _distances(points, centres).min(1)
        weights = apart / apart.sum() if apart.sum() > 0 else np.full(len(points), 1 / len(points))
        centres = np.vstack([centres, points[stream.choice(len(points), p=weights)]])
    for _ in range(iterations):
        nearest = _distances(points, centres).argmin(1)
        centres = np.array([points[nearest == i].mean(0) if (nearest == i).any() else c for i, c in enumerate(centres)])
    apart = _distances(points, centres)
    chosen = []
    for column in apart.T:
        best = int(column.argmin())
        chosen.append(best)
        apart[best] = np.inf
    return np.array(chosen)


def _distances(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances `[points, centres]`."""
    squares = (points**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * points @ centres.T
    return np.maximum(squares, 0.0)


def _groups(pool: CandidatePool, n: int) -> list[tuple[NDArray[np.int64], int]]:
    """Candidates and quota of each dimension."""
    labels = np.array(pool.dimensions)
    return [(np.flatnonzero(labels == dimension), count) for dimension, count in quotas(pool, n).items()]


def _selection(pool: CandidatePool, indices: NDArray[np.int64], n: int, rule: str, **more: Any) -> Selection:
    spec = {"kind": "protocol", "protocol": f"pool:{rule}", **pool.spec, "n": n, **more}
    return Selection(pool, tuple(int(i) for i in indices), (), spec)
