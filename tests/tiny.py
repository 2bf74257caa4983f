"""Tiny random models of many families, with a word tokenizer, made in memory."""

from __future__ import annotations

import hashlib

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from igsp.models import LanguageModel, tokenizer_fingerprint
from igsp.text.windows import CalibrationSet, Window

VOCABULARY = 128
MODERN = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}
SLIDING = {"sliding_window": 8, "head_dim": 16}
FAMILIES: dict[str, dict] = {
    "llama": MODERN,
    "qwen2": MODERN | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": MODERN | {"head_dim": 16},
    "mistral": MODERN | {"sliding_window": 8},
    "gemma2": MODERN | SLIDING,
    "gemma3_text": MODERN | SLIDING
    | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "phi3": MODERN,
    "opt": MODERN | {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64,
             "bos_token_id": 1, "eos_token_id": 2},
    "gpt_neox": MODERN,
    "olmo2": MODERN,
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 3, "n_head": 4},
}


def tiny_model(
    family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object
) -> LanguageModel:
    """A random model of that family: 3 blocks, 64 wide, 128 words."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(FAMILIES.get(family, MODERN) | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.requires_grad_(False)
    for parameter in model.parameters():  # the default initialisation is so small that blocks hardly change anything
        if parameter.ndim == 2:
            parameter.normal_(0, 0.15)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    return LanguageModel(model, tokenizer, f"tiny-{family}", hashlib.sha256(f"{family} {seed}".encode()).hexdigest())


def tiny_calibration(lm: LanguageModel, n: int = 8, seqlen: int = 32, seed: int = 0) -> CalibrationSet:
    """Windows of random words for `lm`."""
    ids = torch.randint(3, VOCABULARY, (n, seqlen), generator=torch.Generator().manual_seed(seed))
    spec = {"kind": "random", "seed": seed}
    return CalibrationSet(ids, (Window("random", (), 0),) * n, tokenizer_fingerprint(lm.tokenizer), spec)
