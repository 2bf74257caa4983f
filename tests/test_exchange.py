"""Calibration sets to and from other programs, and pruned checkpoints in plain transformers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pytest
import torch
from safetensors import safe_open
from tiny import tiny_calibration, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from igsp.errors import NotEnoughText, TokenizerMismatch, UsageError
from igsp.models import LanguageModel, tokenizer_fingerprint
from igsp.pruning.driver import prune, save
from igsp.pruning.report import load_masks
from igsp.text.exchange import FORMATS, export, read, to_dataset
from igsp.text.windows import CalibrationSet, Window


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model()


@pytest.fixture
def made(lm: LanguageModel) -> CalibrationSet:
    """Windows of two sources with documents and draws of their own."""
    plain = tiny_calibration(lm, n=6)
    windows = tuple(Window("ab"[i % 2], (f"d{i}", "é"), i) for i in range(6))
    return CalibrationSet(plain.input_ids, windows, plain.tokenizer, {"kind": "mix", "n": 6})


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_comes_back_as_it_was(tmp_path, made, lm, form):
    path = export(made, tmp_path / "set.jsonl", form)
    found = read(path, lm.tokenizer)
    assert torch.equal(found.input_ids, made.input_ids) and found.windows == made.windows
    assert found.tokenizer == made.tokenizer and found.sha256 == made.sha256
    assert read(path, lm.tokenizer, n=4).windows == made.windows[:4]
    with pytest.raises(NotEnoughText, match="yields 6 windows"):
        read(path, lm.tokenizer, n=7)
    with pytest.raises(UsageError, match="exists"):
        export(made, path, form)


def test_a_data_set_holds_what_compression_libraries_take_and_nothing_else(made):
    data = to_dataset(made)
    assert data.column_names == ["input_ids", "attention_mask"] and len(data) == made.n
    assert data[2]["input_ids"] == made.input_ids[2].tolist() and set(data[2]["attention_mask"]) == {1}


def test_some_rows_of_our_data_set_are_taken_without_their_origin(tmp_path, made, lm):
    to_dataset(made).select([1, 3]).save_to_disk(tmp_path / "some")
    found = read(tmp_path / "some", lm.tokenizer)
    assert torch.equal(found.input_ids, made.input_ids[[1, 3]]) and found.windows[0] == Window("some", ("1",), 0)


def test_text_is_cut_into_full_windows(tmp_path, lm):
    rows = [{"text": " ".join(f"w{10 * i + j}" for j in range(10))} for i in range(1, 4)]
    path = tmp_path / "mine.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    found = read(path, lm.tokenizer, seqlen=8)
    words = [word for row in rows for word in row["text"].split()]
    assert found.input_ids.shape == (3, 8)
    assert lm.tokenizer.convert_ids_to_tokens(found.input_ids.flatten().tolist()) == words[:24]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "folder")
    assert torch.equal(read(tmp_path / "folder", lm.tokenizer, seqlen=8).input_ids, found.input_ids)


ROW = {"input_ids": [5, 6, 7, 8]}


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([ROW, {"input_ids": [5, 6]}], "row 2 has 2 tokens, fewer than 4"),
        ([ROW, {"input_ids": [5, 6, 7, 128]}], "row 2 has ids outside the tokenizer's 128"),
        ([{**ROW, "attention_mask": [1, 1, 1, 0]}], "row 1 is padded"),
        ([{**ROW, "tokenizer": "another"}], "row 1 was cut with another tokenizer"),
        ([{"text": "w1"}], "holds text: say how long"),
        ([{"prompt": "w1", "answer": "w2"}], "neither 'input_ids' nor 'text' nor 'messages'; it has prompt, answer"),
        ([[1, 2]], "line 1: a row is a JSON object, not list"),
        ([], "yields 0 windows"),
    ],
)
def test_unusable_rows_are_named(tmp_path, lm, rows, match):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UsageError, match=match):
        read(path, lm.tokenizer)


def test_damaged_files_and_wrong_paths_are_named(tmp_path, made, lm):
    (tmp_path / "broken.jsonl").write_text(json.dumps(ROW) + '\n{"input_ids": [1,')
    with pytest.raises(UsageError, match=r"broken.jsonl', line 2: no JSON"):
        read(tmp_path / "broken.jsonl", lm.tokenizer)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROW).encode())[:-9])
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "cut.jsonl.gz", lm.tokenizer)
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "a.parquet"):
        with pytest.raises(UsageError, match="holds no calibration set"):
            read(path, lm.tokenizer)
    datasets.DatasetDict({"train": to_dataset(made)}).save_to_disk(tmp_path / "dict")
    with pytest.raises(UsageError, match="the splits train"):
        read(tmp_path / "dict", lm.tokenizer)
    with pytest.raises(UsageError, match="unknown format 'arrow'"):
        export(made, tmp_path / "y", "arrow")


def test_a_set_of_another_tokenizer_is_refused(tmp_path, made, lm):
    foreign = CalibrationSet(made.input_ids, made.windows, "another", made.spec)
    for form in ("datasets", "jsonl"):
        with pytest.raises(TokenizerMismatch, match="another tokenizer"):
            read(export(foreign, tmp_path / f"{form}.jsonl", form), lm.tokenizer)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pruned_checkpoints_are_plain_ones(tmp_path, tied, dtype):
    """Zeros, dtype and tied weights survive; shards; masks are the zeros; the tokenizer loads beside it."""
    lm = tiny_model(dtype=dtype, tie_word_embeddings=tied)
    report = prune(lm, tiny_calibration(lm), sparsity=0.5, progress=False)
    folder = save(lm, tmp_path / "out", report, max_shard_size="100KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1 and ("lm_head.weight" in index["weight_map"]) == (not tied)
    for shard in shards:
        with safe_open(folder / shard, "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}  # noqa: SIM118
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == dtype
    head, embedding = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    assert (head.data_ptr() == embedding.data_ptr()) == tied
    for name, mask in load_masks(folder).items():
        weight = loaded.get_submodule(name).weight
        assert mask.shape == weight.shape and (weight[mask] == 0).all() and mask.float().mean() == pytest.approx(0.5)
    for (_, a), (_, b) in zip(lm.model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(a, b)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(folder)) == tokenizer_fingerprint(lm.tokenizer)


def weight_files(folder: Path) -> list[Path]:
    """What vLLM's default loader reads: the files of the index where there is one, else every safetensors file."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", ["100KB", "5GB"])
def test_a_serving_engine_finds_the_dense_models_tensors_and_no_others(tmp_path, tied, size):
    """Names, shapes, type, tying and architecture: what vLLM reads is what it would read of the dense one."""
    lm = tiny_model(dtype=torch.bfloat16, tie_word_embeddings=tied)
    lm.model.save_pretrained(tmp_path / "dense", max_shard_size=size)
    report = prune(lm, tiny_calibration(lm), sparsity=0.5, progress=False)
    out = save(lm, tmp_path / "out", report, max_shard_size=size)
    described = []
    for folder in (tmp_path / "dense", out):
        tensors = {}
        for path in weight_files(folder):
            with safe_open(path, "pt") as file:
                found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                tensors |= {name: (part.get_shape(), part.get_dtype()) for name, part in found.items()}
        described.append(tensors)
    assert described[0] == described[1] and {kind for _, kind in described[1].values()} == {"BF16"}
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is tied and ("lm_head.weight" in described[1]) is not tied
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= {p.name for p in out.iterdir()}


def test_the_manifest_and_the_card_say_what_was_done(tmp_path, made, lm):
    lm = tiny_model()
    known = CalibrationSet(made.input_ids, (Window("stdlib", ("x",), 3), *made.windows[1:]), made.tokenizer, made.spec)
    report = prune(lm, known, sparsity=0.5, progress=False)
    folder = save(lm, tmp_path / "out", report, known)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model"] == {"name": lm.name, "fingerprint": lm.fingerprint, "tokenizer": known.tokenizer}
    assert {"igsp", "torch", "transformers", "python"} <= set(manifest["versions"])
    data = manifest["calibration"]
    assert data["sha256"] == known.sha256 and data["sources"]["stdlib"]["origin"] == "installed"
    assert data["sources"]["b"] == {"windows": 3} and data["windows"][0]["draw"] == 3
    assert len({window["sha256"] for window in data["windows"]}) == known.n
    assert [row["name"] for row in manifest["report"]["modules"]] == [m.name for m in report.modules]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name") and "50.0%" in card
    assert known.sha256 in card and "| stdlib | 1 |" in card
