"""The gate: opens a model folder and holds its files against each other and against the model, before anything runs.

A download that was cut short, a shard of another model, a weight that nobody stored: what a program reads past without
noticing is refused here by name. Only headers are read, so this takes a fraction of a second for a model of any size.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from igsp.errors import CheckpointError, NumericalError, UsageError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2,
          "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
WEIGHTS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
PLAIN_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")
# Buffers that older versions of transformers stored and newer ones compute.
BUFFERS = re.compile(r"(^|\.)((original_)?inv_freq|masked_bias|position_ids|(cos|sin)_cached|(attn|attention)\.bias)$")
AGAIN = "fetch or copy the file again"


class Stored(NamedTuple):
    """One tensor of a safetensors file: its type there, shape, and where its bytes lie."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: str | Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors and metadata of a safetensors file, whose header must account for every byte of it.

    Raises:
        CheckpointError: names the file, what its header promises and what was found.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise ValueError(f"{size} bytes, too few for its header, or no safetensors file at all")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        tensors, end = {}, 8 + length
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            shape = tuple(entry["shape"])
            if entry["dtype"] not in WIDTHS:
                raise ValueError(f"tensor '{name}' is of type {entry['dtype']}, which this package does not read")
            if min(shape, default=0) < 0 or start != end or stop - start != math.prod(shape) * WIDTHS[entry["dtype"]]:
                raise ValueError(f"tensor '{name}' of shape {list(shape)} does not fill bytes {start} to {stop}")
            tensors[name], end = Stored(path, entry["dtype"], shape, start, stop), stop
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else f"its header is damaged ({_first_line(error)})"
        raise CheckpointError(f"'{path}' is damaged: {reason}; {AGAIN}") from None
    if end != size:
        raise CheckpointError(f"'{path}' is damaged: it has {size:,} bytes, its header promises {end:,}; {AGAIN}")
    return tensors, metadata


def read_tensors(path: str | Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Content and metadata of a small safetensors file of our own (`what` says which kind); raises as `read_header`."""
    if not Path(path).is_file():
        raise CheckpointError(f"there is no {what} '{path}'")
    _, metadata = read_header(path)
    try:
        return load_file(path), metadata
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{what} '{path}' is damaged: {_first_line(error)}") from None


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that was found whole: its configuration, the model without weights, and where each tensor lies.

    Attributes:
        skeleton: the model on the `meta` device, in evaluation mode.
        tensors: what the model takes from the files, by the name there.
    """

    folder: Path
    config: Any
    skeleton: PreTrainedModel
    tensors: dict[str, Stored]

    def read(self, names: Sequence[str], dtype: torch.dtype) -> dict[str, nn.Parameter]:
        """These tensors in `dtype`, as frozen parameters; raises `NumericalError` by name if one is not finite.

        The files are read, not mapped: a private map of a file larger than memory is refused by many systems.
        """
        found: dict[str, nn.Parameter] = {}
        for place in {self.tensors[name].file for name in names}:
            with open(place, "rb") as file:
                for name in (name for name in names if self.tensors[name].file == place):
                    stored = self.tensors[name]
                    content = torch.empty(stored.stop - stored.start, dtype=torch.uint8)
                    file.seek(stored.start)
                    if file.readinto(content.numpy().data) != len(content):
                        raise CheckpointError(f"'{place}' was cut short while it was read; {AGAIN}")
                    tensor = content.view(WEIGHTS[stored.dtype]).view(stored.shape).to(dtype)
                    found[name] = nn.Parameter(tensor, requires_grad=False)
        refuse_not_finite(found)
        return found


def open_checkpoint(folder: Path, name: str) -> ModelFolder:
    """Opens the folder of the model that was asked for as `name`, and refuses it unless all of it agrees.

    Held against each other: the length of each file and what its header promises; the index and its shards; names,
    shapes and types of the tensors and what the model of this configuration needs (by transformers' own loading,
    without weights, so that renamed and tied tensors count as they do there).

    Raises:
        CheckpointError: names the file or tensors, what was found and promised, and the way out.
        UsageError: no causal language model, or quantised weights.
    """
    config = read_config(folder, name)
    tensors = _stored(folder, name)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(layers, int) or not 0 < layers <= len(tensors):
        raise CheckpointError(f"model '{name}': its config.json promises {layers} layers, its files hold "
                              f"{len(tensors)} tensors: they belong to different models")
    foreign = {n: t for n, t in tensors.items() if t.dtype not in WEIGHTS and not BUFFERS.search(n)}
    for tensor, stored in foreign.items():
        raise CheckpointError(f"model '{name}' stores '{tensor}' as {stored.dtype}: quantised weights cannot be "
                              "pruned, their zeros would not be zeros; give the float32, bfloat16 or float16 model")
    skeleton = _fitted(folder, name)
    needed = {name for name, _ in skeleton.named_parameters()}
    return ModelFolder(
        folder, config, skeleton, {n: t for n, t in tensors.items() if n in needed or not BUFFERS.search(n)}
    )


def read_config(folder: Path, name: str) -> Any:
    """Configuration of a causal language model with plain weights; raises as `open_checkpoint`."""
    _read_json(folder / "config.json", name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a class of transformers says to values it does not expect
        raise CheckpointError(
            f"model '{name}' has no configuration that transformers knows: {_first_line(error)}; "
            "compare its config.json with the published one"
        ) from error
    _refuse(name, config)
    return config


def load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; raises `CheckpointError` if there is none, or a damaged one."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        words = len(tokenizer.encode("one 1", add_special_tokens=False)) and len(tokenizer)
    except Exception as error:  # its Rust half raises plain Exceptions
        raise CheckpointError(
            f"model '{name}' has no tokenizer that transformers can read: {_first_line(error)}; copy tokenizer.json "
            f"and tokenizer_config.json of the published model to '{folder}'"
        ) from error
    if not words:
        raise CheckpointError(f"model '{name}' has a tokenizer without words (no tokenizer.json?): copy the published "
                              f"one to '{folder}'")
    return tokenizer


def refuse_not_finite(parameters: dict[str, Any]) -> None:
    """Raises `NumericalError` if one of these tensors, given by name, holds NaN or infinity (one wait a device)."""
    if not parameters:
        return
    sums = torch.stack([p.detach().sum(dtype=torch.float32) for p in parameters.values()])
    if not torch.isfinite(sums).all():
        wrong = [n for n, fine in zip(parameters, torch.isfinite(sums).tolist(), strict=True) if not fine]
        raise NumericalError(f"the weights of {_some(wrong)} are not finite: the checkpoint is damaged; {AGAIN}")


def _refuse(name: str, config: Any) -> None:
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or getattr(config, "is_encoder_decoder", False):
        raise UsageError(f"model '{name}' ({config.model_type}) is no causal language model: pruning needs a decoder")
    architectures = getattr(config, "architectures", None) or []
    if architectures and not any(
        "CausalLM" in a or "LMHead" in a or "ConditionalGeneration" in a for a in map(str, architectures)
    ):
        raise UsageError(f"model '{name}' was saved as {architectures[0]}, which has no language-model head")
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        kind = quantised.get("quant_method", "?") if isinstance(quantised, dict) else type(quantised).__name__
        raise UsageError(
            f"model '{name}' holds quantised weights ({kind}), whose zeros would not be zeros: dequantise it first "
            "(load it with transformers, call model.dequantize(), save_pretrained to a folder) and give that folder"
        )


def _stored(folder: Path, name: str) -> dict[str, Stored]:
    """The tensors of a folder, in the file that transformers would read, or in shards that agree with their index."""
    if (folder / SINGLE).exists():
        return read_header(folder / SINGLE)[0]
    if not (folder / INDEX).exists():
        other = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".h5"})
        raise CheckpointError(
            f"model '{name}': '{folder}' holds no safetensors files" + (
                f", only {other[0]}, a format that can run code when it is read: where you trust it, load it with "
                "transformers, call save_pretrained to a new folder and give that one" if other else
                f": neither {SINGLE} nor {INDEX}"))
    weight_map = _read_json(folder / INDEX, name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(
        isinstance(place, str) and PLAIN_NAME.fullmatch(place) for place in weight_map.values()
    ):
        raise CheckpointError(f"'{folder / INDEX}' names no safetensors file of its folder for each tensor; {AGAIN}")
    found: dict[str, Stored] = {}
    for place in sorted(set(weight_map.values())):
        if not (folder / place).exists():
            raise CheckpointError(f"'{folder / place}' is missing, though the index names it: fetch it")
        inside = read_header(folder / place)[0]
        listed = {tensor for tensor, where in weight_map.items() if where == place}
        differing = [n for n in sorted(listed ^ set(inside)) if n in listed or not BUFFERS.search(n)]
        if differing:
            raise CheckpointError(
                f"'{folder / place}' and the index disagree on {_some(differing)}: they belong to different models or "
                "versions; fetch both again"
            )
        found |= {tensor: inside[tensor] for tensor in listed}
    return found


def _fitted(folder: Path, name: str) -> PreTrainedModel:
    """The model on `meta`, once transformers found each of its tensors, in its shape, and no other."""
    model: PreTrainedModel
    found: dict[str, Any]
    try:
        with _quiet():
            model, found = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
                folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True,
                trust_remote_code=False, use_safetensors=True,
            )
    except Exception as error:
        raise CheckpointError(
            f"model '{name}' cannot be built from its config.json: {_first_line(error)}; "
            "compare it with the published one"
        ) from error
    unexpected = [n for n in found["unexpected_keys"] if not BUFFERS.search(n)]
    shapes = [f"{n} {list(there)}, the model needs {list(asked)}" for n, there, asked in found["mismatched_keys"]]
    errors = found.get("conversion_errors") or found.get("error_msgs") or {}
    complaints = [f"{kind} {_some(sorted(names))}" for kind, names in (
        ("the files lack", found["missing_keys"]), ("the model has no place for", unexpected),
        ("of another shape:", shapes), ("not convertible:", errors),
    ) if names]
    if complaints:
        raise CheckpointError(f"the weights of model '{name}' are not those of its config.json: "
                              f"{'; '.join(complaints)}. Fetch the folder again, or save it whole with save_pretrained")
    return model.eval().requires_grad_(False)


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf8"))
        if isinstance(content, dict):
            return content
        reason = f"it holds a {type(content).__name__}, not a mapping"
    except (OSError, ValueError, RecursionError) as error:
        reason = _first_line(error)
    raise CheckpointError(f"model '{name}': '{path}' cannot be read: {reason}; {AGAIN}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of what did not fit (it is an error here) and its remarks on `meta`."""
    logger = logging.getLogger("transformers")
    before, bar = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if bar:
            transformers_logging.enable_progress_bar()


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
