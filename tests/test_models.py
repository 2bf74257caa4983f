"""Models: one path from a name to a model, and clear refusals."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from igsp import load_model
from igsp.assets import cache_dir
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


@pytest.mark.model
def test_the_alias_is_dequantised_once_and_repaired_when_damaged(monkeypatch):
    folder = resolve_folder("smollm2-135m")
    assert folder.is_relative_to(cache_dir())
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_folder("smollm2-135m") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text("{}")
    assert (resolve_folder("smollm2-135m") / "config.json").read_text() == config


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
