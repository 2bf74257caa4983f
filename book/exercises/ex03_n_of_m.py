"""ex03 ★ A 2:4 mask

Page: book/primer-pruning

Hardware that exploits sparsity wants it in a pattern: in every `group` consecutive columns exactly
`keep` weights stay. Write `pattern_mask(score, keep, group)` for scores `[rows, columns]`,
`columns` a multiple of `group`. The weights with the largest scores stay; of equal scores the later
column stays. Return True where a weight is pruned.
"""

import numpy as np


def pattern_mask(score, keep, group):
    """True where a weight is pruned, `[rows, columns]`."""
    # BEGIN: reshape to groups, sort within each
    rows, columns = score.shape
    groups = score.reshape(rows, columns // group, group)
    order = np.argsort(groups, axis=2, kind="stable")
    mask = np.zeros(groups.shape, dtype=bool)
    np.put_along_axis(mask, order[:, :, : group - keep], True, axis=2)
    return mask.reshape(rows, columns)
    # END


# CHECK


def check():
    score = np.array([[1.0, 2, 3, 4, 9, 8, 7, 6], [5, 5, 5, 5, 0, 1, 0, 1]])
    mask = np.asarray(pattern_mask(score, 2, 4))
    assert mask.shape == score.shape and mask.dtype == bool, "return a boolean mask of the shape of the scores"
    assert mask[0].tolist() == [True, True, False, False, False, False, True, True], "each group decides by itself"
    assert mask[1].tolist() == [True, True, False, False, True, False, True, False], "of equal scores the later stays"
    rng = np.random.default_rng(0)
    score = rng.random((6, 24))
    for keep, group in ((2, 4), (4, 8), (1, 3)):
        mask = pattern_mask(score, keep, group)
        kept = (~mask).reshape(6, -1, group).sum(2)
        assert (kept == keep).all(), f"{keep}:{group} keeps {keep} in every group of {group}"
    mask = pattern_mask(score, 2, 4)
    free = np.sort(score, axis=1)[:, 12:].sum()
    assert score[~mask].sum() < free, "a pattern cannot keep more than a free choice of the same size"
