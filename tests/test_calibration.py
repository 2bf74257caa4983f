"""Calibration sets: full windows, their origin, independence of sources, exact mixture counts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from igsp.errors import NotEnoughText, UsageError
from igsp.text import windows as calibration
from igsp.text.catalogue import Document
from igsp.text.windows import CalibrationSet, Window, concatenate, largest_remainder, mix, sample


@pytest.fixture(scope="module")
def tokenizer():
    """Every printable character is a token."""
    vocabulary = {chr(c): i for i, c in enumerate(range(32, 127))} | {"\n": 95, "?": 31}
    backend = Tokenizer(models.WordLevel({**vocabulary, "<unk>": 96}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture
def corpus(monkeypatch):
    """Two sources: `short` has 40 documents of 30 characters, `long` three of 2,000."""
    rng = np.random.default_rng(0)

    def text(size):
        return "".join(chr(c) for c in rng.integers(97, 123, size))

    texts = {
        "short": [Document(f"s{i}", text(30)) for i in range(40)],
        "long": [Document(f"l{i}", text(2000)) for i in range(3)],
    }
    monkeypatch.setattr(calibration, "documents", lambda source, split: texts[source])
    return texts


def test_windows_are_full_and_know_their_documents(tokenizer, corpus):
    made = sample("short", tokenizer, n=8, seqlen=64)
    assert made.input_ids.shape == (8, 64) and made.input_ids.dtype == torch.int64
    texts = {d.id: d.text for d in corpus["short"]}
    for row, window in zip(made.input_ids.tolist(), made.windows, strict=True):
        decoded = "".join(tokenizer.convert_ids_to_tokens(row))
        assert window.source == "short"
        pieces = [p for p in decoded.split("\n\n") if p]
        assert len(window.documents) >= 2
        assert all(any(piece in texts[d] for d in window.documents) for piece in pieces)


def test_long_documents_do_not_crowd_out_others_and_text_is_not_repeated(tokenizer, corpus):
    made = sample("long", tokenizer, n=60, seqlen=64)
    assert {d for w in made.windows[:4] for d in w.documents} == {"l0", "l1", "l2"}
    grams = [tuple(row[i : i + 12]) for row in made.input_ids.tolist() for i in range(53)]
    inside = [g for g in grams if 95 not in g]
    assert len(set(inside)) == len(inside)


def test_too_little_text_says_how_many_windows_there_are(tokenizer, corpus):
    with pytest.raises(NotEnoughText, match=r"yields 20 windows") as error:
        sample("short", tokenizer, n=100, seqlen=64)  # 40 documents of 32 tokens with their separators
    assert error.value.windows == 20
    assert sample("short", tokenizer, n=20, seqlen=64).n == 20


def test_draws_differ_repeat_and_extend(tokenizer, corpus):
    first, again = sample("short", tokenizer, 8, 64, draw=0), sample("short", tokenizer, 8, 64, draw=0)
    assert first.sha256 == again.sha256
    assert first.sha256 != sample("short", tokenizer, 8, 64, draw=1).sha256
    assert torch.equal(sample("short", tokenizer, 16, 64, draw=0).input_ids[:8], first.input_ids)


def test_adding_a_source_never_moves_the_windows_of_another(tokenizer, corpus):
    alone = sample("short", tokenizer, 5, 64)
    mixed = mix({"long": 3, "short": 5}, tokenizer, n=8, seqlen=64)
    rows = [i for i, w in enumerate(mixed.windows) if w.source == "short"]
    assert torch.equal(mixed.input_ids[rows], alone.input_ids)
    assert [w.source for w in mixed.windows].count("long") == 3


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20).filter(lambda w: sum(w) > 1e-6), st.integers(1, 500))
def test_largest_remainder_is_exact_and_within_one(weights, n):
    counts = largest_remainder({str(i): w for i, w in enumerate(weights)}, n)
    assert sum(counts.values()) == n
    for i, weight in enumerate(weights):
        assert abs(counts[str(i)] - weight / sum(weights) * n) < 1 + 1e-6


def test_equal_weights_with_a_remainder():
    assert largest_remainder({"a": 1, "b": 1, "c": 1}, 16) == {"a": 6, "b": 5, "c": 5}


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": -1, "b": 2}, {"a": float("nan")}])
def test_weights_that_sum_to_nothing_are_refused(weights):
    with pytest.raises(UsageError, match="weights"):
        largest_remainder(weights, 4)


def test_save_and_load(tmp_path, tokenizer, corpus):
    made = mix({"long": 1, "short": 1}, tokenizer, n=8, seqlen=64)
    made.save(tmp_path / "set")
    loaded = CalibrationSet.load(tmp_path / "set")
    assert loaded.sha256 == made.sha256 and loaded.windows == made.windows and loaded.spec == made.spec


def test_a_damaged_or_missing_set_is_refused(tmp_path, tokenizer, corpus):
    with pytest.raises(UsageError, match="holds no calibration set"):
        CalibrationSet.load(tmp_path)
    sample("short", tokenizer, 8, 64, draw=0).save(tmp_path / "a")
    sample("short", tokenizer, 8, 64, draw=1).save(tmp_path / "b")
    (tmp_path / "a" / "windows.safetensors").write_bytes((tmp_path / "b" / "windows.safetensors").read_bytes())
    with pytest.raises(UsageError, match="damaged"):
        CalibrationSet.load(tmp_path / "a")
    (tmp_path / "b" / "windows.safetensors").write_bytes(b"cut off")
    with pytest.raises(UsageError, match="holds no calibration set"):
        CalibrationSet.load(tmp_path / "b")


def test_bad_shapes_are_refused(tokenizer, corpus):
    with pytest.raises(UsageError, match="at least 1"):
        sample("short", tokenizer, n=0, seqlen=64)
    with pytest.raises(UsageError, match="origin per row"):
        CalibrationSet(torch.zeros(2, 4, dtype=torch.int64), (Window("x", (), 0),), "t", {})
    a, b = sample("short", tokenizer, 2, 64), sample("short", tokenizer, 2, 32)
    with pytest.raises(UsageError, match="different tokenizers or lengths"):
        concatenate([a, b], {})
