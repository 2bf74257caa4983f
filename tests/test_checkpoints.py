"""The gate: whatever is wrong with a model folder is said by name, on every path, before anything is computed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_prune import contents, stored
from tiny import FAMILIES, tiny_calibration, tiny_model

from igsp.checkpoints import INDEX, SINGLE, open_checkpoint, read_header
from igsp.cli import main
from igsp.errors import CheckpointError, IgspError, NumericalError, UsageError
from igsp.models import leading_tokens, load_model
from igsp.pruning.cost import plan
from igsp.pruning.driver import Statistics, collect_statistics, prune, save
from igsp.pruning.report import MASKS, load_masks
from igsp.pruning.streaming import prune_folder

STREAM = {"method": "magnitude", "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sound folder with one file of weights; never changed."""
    return Path(stored("llama", tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A sound folder with 17 files of weights and their index."""
    folder = Path(stored("llama", tmp_path_factory.mktemp("sharded")))
    tensors = sorted(load_file(folder / SINGLE).items())
    (folder / SINGLE).unlink()
    names = [f"model-{i + 1:05d}-of-00017.safetensors" for i in range(17)]
    for i, name in enumerate(names):
        save_file(dict(tensors[i::17]), folder / name, {"format": "pt"})
    places = {name: names[i % 17] for i, (name, _) in enumerate(tensors)}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def refused(folder, match, error=CheckpointError):
    """Every way to a model refuses it with the same words and leaves nothing behind."""
    name, out = str(folder), folder.parent / "out"
    before = sorted(folder.parent.iterdir())
    for way in (
        lambda: load_model(name, "cpu", "float32"), lambda: prune_folder(name, out, **STREAM),
        lambda: plan(name, 4, 32, device="cpu", dtype="float32"),
    ):
        with pytest.raises(error, match=match):
            way()
    assert sorted(folder.parent.iterdir()) == before


def rewrite(folder, change):
    """Applies `change` to the tensors of a folder's single file."""
    tensors = load_file(folder / SINGLE)
    save_file(change(tensors) or tensors, folder / SINGLE, {"format": "pt"})


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_shard_cut_short_is_named(sharded, tmp_path):
    for index, path in enumerate(sorted(sharded.glob("model-*"))):
        copy = Path(shutil.copytree(sharded, tmp_path / f"{index}" / "model"))
        size = path.stat().st_size
        with open(copy / path.name, "rb+") as file:
            file.truncate(3 * size // 4)
        refused(copy, rf"{path.name}' is damaged: it has {3 * size // 4:,} bytes, its header promises {size:,}")


def test_every_weight_that_is_missing_is_named(whole, tmp_path):
    names = list(load_file(whole / SINGLE))
    for name in names:
        copy = Path(shutil.copytree(whole, tmp_path / name))
        rewrite(copy, lambda tensors, name=name: tensors.pop(name) is None)
        with pytest.raises(CheckpointError, match=f"files lack '{name}'"):
            open_checkpoint(copy, "it")
    refused(tmp_path / "lm_head.weight", "lm_head")


def test_other_shapes_and_other_tensors_are_named(folder):
    rewrite(folder, lambda t: {n: x.t().contiguous() if "layers.1.mlp.up_proj" in n else x for n, x in t.items()})
    refused(folder, r"another shape: .*layers\.1\.mlp\.up_proj\.weight \[64, 96\], the model needs \[96, 64\]")
    rewrite(folder, lambda t: {n.replace("mlp", "ffn"): x for n, x in t.items()})
    refused(folder, r"lack 'model\.layers\.0\.mlp.* and 6 more; the model has no place for 'model\.layers\.0\.ffn")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantised_tensors_are_refused(folder, dtype):
    rewrite(folder, lambda t: {n: x.to(dtype) if "up_proj" in n else x for n, x in t.items()})
    refused(folder, r"up_proj\.weight' as (F8_E4M3|I8): quantised weights")


def test_buffers_of_older_versions_and_both_copies_of_a_tied_matrix_are_fine(tmp_path):
    folder = Path(stored("gpt2", tmp_path / "model"))
    embedding = load_file(folder / SINGLE)["transformer.wte.weight"]
    old = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8),
           "transformer.h.0.attn.masked_bias": torch.tensor(-1e4), "lm_head.weight": embedding.clone()}
    rewrite(folder, lambda tensors: tensors | old)
    load_model(str(folder), "cpu", "float32")
    assert prune_folder(str(folder), tmp_path / "out", **STREAM).reached > 0.59


def test_a_damaged_header_is_refused(folder):
    path, good = folder / SINGLE, (folder / SINGLE).read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")

    def write(head):
        text = json.dumps(head).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + good[8 + length :])

    for content in (b"", b"abc", b"\xff" * 8, good[: 8 + length // 2], b"\x00" * 100, good + b"more",
                    (2).to_bytes(8, "little") + b"[]", (9).to_bytes(8, "little") + b"not json!", b"[" * 100_000):
        path.write_bytes(content)
        refused(folder, "model.safetensors' is damaged: .*fetch or copy the file again")
    for change in ({"shape": [64]}, {"dtype": "F4"}, {"shape": "x"}, {"data_offsets": [0]}, {"data_offsets": [-8, 8]},
                   {"shape": [-64, -128]}):
        write(header | {name: header[name] | change})
        refused(folder, "is damaged")


def test_an_index_that_is_none_is_refused(sharded, tmp_path):
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    good = json.loads((folder / INDEX).read_text())
    first, *rest = sorted(good["weight_map"])
    for index in (
        {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {first: 3}}, {"weight_map": {first: "x.bin"}},
        {"weight_map": {first: "../x.safetensors"}}, {"weight_map": {first: "/etc/passwd"}},
    ):
        (folder / INDEX).write_text(json.dumps(index))
        refused(folder, "names no safetensors file of its folder")
    for text in ("", "{", "[]", "\xff", "[" * 100_000):
        (folder / INDEX).write_bytes(text.encode("latin1"))
        refused(folder, "cannot be read|mapping")
    places = good["weight_map"]
    (folder / INDEX).write_text(json.dumps({"weight_map": places | {first: places[rest[-1]]}}))
    refused(folder, f"disagree on '{first}'")
    (folder / INDEX).write_text(json.dumps(good))
    (folder / places[first]).unlink()
    refused(folder, f"{places[first]}' is missing, though the index names it")


def test_pickled_weights_are_refused_with_the_way_out(folder):
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()
    refused(folder, r"only pytorch_model\.bin, a format that can run code.*save_pretrained")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, "holds no safetensors files: neither")


@pytest.mark.parametrize(("text", "match"), [
    ("", "cannot be read"), ("{", "cannot be read"), ("[]", "a list, not a mapping"), ("{}", "no configuration"),
    ("[" * 100_000, "cannot be read"),
])
def test_a_config_that_is_none_is_refused(folder, text, match):
    (folder / "config.json").write_text(text)
    refused(folder, match)


@pytest.mark.parametrize(("changes", "match"), [
    ({"num_attention_heads": 0}, "config"), ({"num_hidden_layers": 10**9}, "promises 1000000000 layers"),
    ({"num_hidden_layers": 4}, r"lack 'model\.layers\.3"),
    ({"num_hidden_layers": 2}, r"no place for 'model\.layers\.2"),
    ({"hidden_size": 32}, "another shape"), ({"hidden_act": "none of ours"}, "config"), ({"vocab_size": -1}, "config"),
    ({"num_hidden_layers": "many"}, "config"), ({"pad_token_id": 4096}, "config"),
    ({"model_type": "ours", "auto_map": {"AutoConfig": "code.Config"}}, "no configuration"),
    ({"quantization_config": {"quant_method": "fp8"}}, r"quantised weights \(fp8\)"),
])
def test_a_config_of_another_model_is_refused(folder, changes, match):
    edit(folder / "config.json", **changes)
    refused(folder, match, UsageError)


def test_a_tokenizer_that_is_missing_or_broken_is_refused(folder):
    def refused_by_the_loaders(match):
        with pytest.raises(CheckpointError, match=match):
            load_model(str(folder), "cpu", "float32")
        with pytest.raises(CheckpointError, match=match):
            prune_folder(str(folder), folder.parent / "out", **STREAM)

    good = (folder / "tokenizer.json").read_text()
    for text in ("", "{", "{}", good[: len(good) // 2], good.replace("WordLevel", "WordLevels")):
        (folder / "tokenizer.json").write_text(text)
        refused_by_the_loaders("no tokenizer that transformers can read: .*copy tokenizer.json")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refused_by_the_loaders("tokenizer")
    assert main(["prune", "--model", str(folder), "--source", "stdlib", "--out", str(folder.parent / "out"), "--quiet",
                 "--stream"]) == 2


def test_a_tokenizer_without_bos_is_fine(whole):
    lm = load_model(str(whole), "cpu", "float32")
    assert lm.tokenizer.bos_token is None and leading_tokens(lm.tokenizer) == []
    assert prune(lm, tiny_calibration(lm), progress=False).reached > 0.59


@pytest.mark.parametrize("name", ["model.layers.2.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder, name, value):
    rewrite(folder, lambda tensors: tensors[name].view(-1)[:1].fill_(value) is None)
    for way in (lambda: load_model(str(folder), "cpu", "float32"),
                lambda: prune_folder(str(folder), folder.parent / "out", **STREAM)):
        with pytest.raises(NumericalError, match=name.removesuffix(".weight").replace(".", r"\.")):
            way()
    assert not (folder.parent / "out").exists()


def test_links_and_read_only_folders(folder, tmp_path):
    """The hub's cache is made of links; a loop of them is no file."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
        path.chmod(0o444)
    linked.chmod(0o555)
    load_model(str(linked), "cpu", "float32")
    assert prune_folder(str(linked), tmp_path / "out", **STREAM).reached > 0.59
    linked.chmod(0o755)
    (linked / SINGLE).unlink()
    (linked / SINGLE).symlink_to(SINGLE)
    with pytest.raises(CheckpointError, match="no safetensors"):
        load_model(str(linked))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError):
        load_model(str(tmp_path / "loop"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_let_through(family, tmp_path):
    folder = stored(family, tmp_path / "model")
    found = open_checkpoint(Path(folder), family)
    needed = {name: parameter.shape for name, parameter in tiny_model(family).model.named_parameters()}
    assert {name: parameter.shape for name, parameter in found.skeleton.named_parameters()} == needed


def test_the_command_says_it_without_a_traceback(folder, capsys):
    with open(folder / SINGLE, "rb+") as file:
        file.truncate(20_000)
    for command in (["prune", "--source", "stdlib", "--out", folder.parent / "out"],
                    ["prune", "--source", "stdlib", "--out", folder.parent / "out", "--stream"],
                    ["prune", "--source", "stdlib", "--out", folder.parent / "out", "--dry-run"],
                    ["calibrate", "--source", "stdlib", "--out", folder.parent / "out"],
                    ["evaluate", "--suite", "quick"], ["evaluate", "--suite", "quick", "--dry-run"]):
        assert main([*map(str, command), "--model", str(folder), "--quiet"]) == 2
        error = capsys.readouterr().err
        assert "header promises" in error and "Traceback" not in error
    assert not (folder.parent / "out").exists()


def test_masks_are_held_against_their_model(tmp_path):
    lm = tiny_model()
    report = prune(lm, method="magnitude", progress=False)
    folder = save(lm, tmp_path / "out", report)
    assert load_masks(folder, lm).keys() == report.masks.keys()
    with pytest.raises(CheckpointError, match=r"of another model than 'tiny-llama': model\.layers\.0"):
        load_masks(folder, tiny_model(intermediate_size=128))
    with pytest.raises(CheckpointError, match="there is no file of masks"):
        load_masks(tmp_path / "nowhere")
    good = (folder / MASKS).read_bytes()
    for content in (b"", good[: len(good) // 2], good[:-1], good.replace(b"shapes", b"shakes"),
                    good.replace(b"[96", b"[16")):
        (folder / MASKS).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"masks\.safetensors'"):
            load_masks(folder)


def test_stored_statistics_are_held_against_their_header(tmp_path):
    lm = tiny_model()
    path = collect_statistics(lm, tiny_calibration(lm), progress=False).save(tmp_path / "s.safetensors")
    good = path.read_bytes()
    for content in (b"", good[: len(good) // 2], good + b"x", good.replace(b"counts", b"countz"),
                    good.replace(b"down_proj.gram", b"down_proj.gran")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"holds no pruning statistics: .*collect them again"):
            Statistics.load(path)


@pytest.mark.parametrize("way", ["prune", "stream"])
def test_damaged_finished_blocks_are_refused(way, whole, tmp_path, monkeypatch):
    """A run is stopped at its third block; what it left is damaged; it is not resumed from that."""
    from igsp.pruning.checkpoint import Checkpoint
    from igsp.pruning.streaming import Stream

    kind = Checkpoint if way == "prune" else Stream
    work = tmp_path / ("blocks" if way == "prune" else ".out.partial")

    def run():
        if way == "stream":
            return prune_folder(str(whole), tmp_path / "out", **STREAM)
        return prune(load_model(str(whole), "cpu", "bfloat16"), checkpoint=work, method="magnitude", progress=False)

    with monkeypatch.context() as patch:
        save = kind.save
        patch.setattr(kind, "save", lambda self, block, *rest: save(self, block, *rest) if block.index < 2 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run()
    assert len(list(work.glob("block-*"))) == 2
    for path in sorted(work.iterdir()):
        good = path.read_bytes()
        for content in (b"", good[: len(good) // 2]):
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match=f"{path.name}' is damaged"):
                run()
        path.write_bytes(good)
    first, second = sorted(work.glob("block-*"))
    good = second.read_bytes()
    shutil.copy(first, second)
    with pytest.raises(CheckpointError, match="of another model"):
        run()
    second.write_bytes(good)
    assert run().resumed_blocks == 2


SMALL = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 16, "vocab_size": 128}


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """A folder of few bytes, and the parts of it that a mutation may hit."""
    folder = Path(stored("llama", tmp_path_factory.mktemp("smallest"), **SMALL))
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name in (SINGLE, "config.json", "tokenizer.json")}
    return folder, files


@settings(max_examples=int(os.environ.get("IGSP_FUZZ", "60")), deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_any_change_of_bytes_is_refused_by_type_or_harmless(smallest, tmp_path, data):
    """A flipped, inserted or cut byte: a typed error, or a pruning with exact counts. Never a traceback."""
    folder, files = smallest
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    reach = 8 + int.from_bytes(content[:8], "little") if name == SINGLE else len(content)
    place = data.draw(st.integers(0, reach - 1) if data.draw(st.booleans()) else st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["set", "insert", "cut", "remove"]))
    byte = data.draw(st.integers(0, 255) | st.sampled_from(list(b'0123456789-.e[]{}",:')))
    if kind == "set":
        content[place] = byte
    elif kind == "insert":
        content.insert(place, byte)
    elif kind == "cut":
        del content[place:]
    else:
        del content[place : place + data.draw(st.integers(1, 40))]
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    try:
        (folder / name).write_bytes(content)
        lm = load_model(str(folder), "cpu", "bfloat16")
        report = prune(lm, tiny_calibration(lm, n=4, seqlen=16), method="wanda", progress=False)
        assert abs(report.reached - 0.6) < 0.1
        prune_folder(str(folder), out, **STREAM | {"dtype": "bfloat16"})
        assert contents(out)
    except IgspError as error:
        assert len(str(error)) > 20
        assert not out.exists()
    finally:
        for other, good in files.items():
            (folder / other).write_bytes(good)


def test_the_header_says_where_each_tensor_lies(whole):
    tensors, metadata = read_header(whole / SINGLE)
    assert metadata == {"format": "pt"}
    raw = (whole / SINGLE).read_bytes()
    for name, tensor in load_file(whole / SINGLE).items():
        at = tensors[name]
        assert raw[at.start : at.stop] == tensor.view(torch.uint8).numpy().tobytes() and at.shape == tuple(tensor.shape)
