"""Batched sampling of text from any causal language model, resumable, with a seed of its own per text.

What is guaranteed. A text is a function of the model, the settings, its own prompt and its own seed: not of the
batch size, of its neighbours, of the order, or of where an interrupted run was taken up. That holds to the bit on
one kind of device with one number of threads, because every matrix product has a fixed number of rows
(`decoding.WIDTH`), or one of a few that were seen to agree to the bit, and the noise is a function of (seed,
position, token). Across devices, thread counts or library versions the logits differ by rounding; in float32 the
draws are then almost always the same, in bfloat16 a text departs from its twin after some tokens.
Mixture-of-experts models group rows by expert, so for them only the last statement holds.

A text starts from its prompt; from the beginning-of-sequence token alone a base model writes whatever it likes, and
so does an instruction-tuned one as long as its chat template is not used (it then answers nobody).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from igsp.errors import IgspError, NumericalError, UnknownName, UsageError
from igsp.models import LanguageModel
from igsp.writing.decoding import Slots
from igsp.writing.sampling import Sampling, Schedule, draw, stream_key

Ending = Literal["stop", "restart", "ignore"]
ENDINGS: tuple[Ending, ...] = ("stop", "restart", "ignore")
TRIES, SHORTEST = 16, 4  # a text of 16 pieces that average under 4 tokens is given up


class GenerationError(IgspError):
    """The model writes nothing usable."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text between two starts: its prompt and what the model wrote after it, without stop tokens."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Generated:
    """One generated text.

    Attributes:
        seed: its seed.
        pieces: one piece, or several where the text was restarted.
        ended: whether the model itself ended it (`eos="stop"`) before `new_tokens` were written.
    """

    seed: int
    pieces: tuple[Piece, ...]
    ended: bool

    @property
    def ids(self) -> list[int]:
        """The tokens that the model wrote, pieces joined, without prompts and stop tokens."""
        return [token for piece in self.pieces for token in piece.ids]


def stop_tokens(lm: LanguageModel) -> list[int]:
    """Tokens that end a text: every special token, and what model or tokenizer name as end, beginning or padding.

    A special token is not text, and what stands on its two sides is not one document.
    """
    found = set(lm.tokenizer.all_special_ids)
    generation = getattr(lm.model, "generation_config", None)
    for holder in (lm.tokenizer, lm.model.config, generation):
        for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
            value = getattr(holder, name, None)
            found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return sorted(token for token in found if token >= 0)


@dataclass(frozen=True)
class Request:
    """A text to be written: its seed, the tokens it begins with, how it is sampled, and what it starts again with.

    Attributes:
        seed: 64-bit integer; the same request gives the same text.
        restart_prompts: with `eos="restart"`, pieces after the first draw their prompt from these, by the
            text's own seed. Empty: the text begins again with its own prompt.
    """

    seed: int
    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    restart_prompts: tuple[tuple[int, ...], ...] = ()

    def settings(self) -> dict[str, Any]:
        """What decides the text besides model, seed and prompt, as plain data."""
        again = hashlib.sha256(json.dumps(self.restart_prompts).encode()).hexdigest() if self.restart_prompts else None
        return {**self.sampling.describe(), "restart_prompts": again}


def generate(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int, seeds: Sequence[int],
    temperature: float | Schedule = 1.0, top_k: int | None = None, top_p: float | None = None,
    repetition_penalty: float = 1.0, eos: Ending = "stop", batch_size: int | None = None, progress: bool = True,
    resume: str | Path | None = None,
) -> list[Generated]:
    """Writes one text per prompt, all sampled alike (`write_texts` mixes settings).

    Args:
        prompts: token ids of each text's beginning, at least one token each.
        new_tokens: tokens to write per text, prompts and stop tokens not counted.
        seeds: one per text.
        temperature, top_k, top_p, repetition_penalty: see `sampling.Sampling`.
        eos, batch_size, resume: see `write_texts`.

    Raises:
        As `write_texts`.
    """
    if len(seeds) != len(prompts):
        raise UsageError(f"every text has a prompt and a seed: got {len(prompts)} prompts and {len(seeds)} seeds")
    sampling = Sampling(repetition_penalty, temperature, top_k, top_p)
    requests = [Request(int(seed), tuple(prompt), sampling) for seed, prompt in zip(seeds, prompts, strict=True)]
    return write_texts(lm, requests, new_tokens, eos, batch_size, progress, resume)


def write_texts(
    lm: LanguageModel, requests: Sequence[Request], new_tokens: int, eos: Ending = "stop",
    batch_size: int | None = None, progress: bool = True, resume: str | Path | None = None,
) -> list[Generated]:
    """Writes one text per request; texts of different settings share the batch.

    Args:
        new_tokens: tokens to write per text, prompts and stop tokens not counted.
        eos: what a stop token (`stop_tokens`) does: `stop` ends the text; `restart` begins a new piece, with no
            memory of the ones before and the temperature schedule anew, until `new_tokens` are written; `ignore`
            never draws one.
        batch_size: texts in flight at once, at most. By default as many as `decoding.Slots` finds room for: up to
            256 on a CPU, 128 elsewhere. It bounds the memory of the cache and does not change the texts.
        resume: a JSONL file, one line per finished text, written as it goes. If it exists, its texts are taken
            over; its run may have had other seeds and prompts, but not another model or other settings.

    Raises:
        UsageError: bad settings, an empty prompt, a text over the model's positions, a resume file of another run.
        GenerationError: with `restart`, a model that ends its texts at once, again and again.
        NumericalError: logits that are not numbers.
    """
    if eos not in ENDINGS:
        raise UnknownName("end-of-sequence rule", eos, ENDINGS)
    if new_tokens < 1 or (batch_size is not None and batch_size < 1):
        raise UsageError(f"new_tokens and batch_size must be at least 1, got {new_tokens} and {batch_size}")
    longest = _check_prompts(lm, requests, new_tokens)
    journal = _Journal(Path(resume), lm, requests, new_tokens, eos) if resume else None
    done = journal.read() if journal else {}
    todo = list(dict.fromkeys(request for request in requests if request not in done))
    if not todo:
        return [done[request] for request in requests]
    places, capacity = min(batch_size or len(todo), len(todo)), longest + new_tokens
    with tqdm(total=len(todo) * new_tokens, unit="tok", desc="generate", disable=not progress) as bar:
        for request, text in _write(lm, todo, new_tokens, eos, places, capacity, bar):
            done[request] = text
            if journal:
                journal.append(request, text)
    return [done[request] for request in requests]


def _check_prompts(lm: LanguageModel, requests: Sequence[Request], new_tokens: int) -> int:
    """Refuses prompts that cannot work; length of the longest."""
    prompts = {prompt for request in requests for prompt in (request.prompt, *request.restart_prompts)}
    vocabulary = int(lm.model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    for prompt in prompts:
        if not prompt:
            raise UsageError("a prompt is empty: begin with the tokenizer's BOS token, or with some text")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise UsageError(f"prompt {prompt[:8]} holds ids outside the {vocabulary} of '{lm.name}'")
    longest = max(map(len, prompts), default=0)
    if longest + new_tokens > lm.max_positions:
        raise UsageError(
            f"a prompt of {longest} tokens and {new_tokens} new ones are over the {lm.max_positions} positions of "
            f"'{lm.name}': use a shorter seqlen or shorter prompts"
        )
    return longest


@dataclass
class Row:
    """A text in the making."""

    request: Request
    prompt: tuple[int, ...] = ()
    context: list[int] = field(default_factory=list)  # prompt and written tokens of the piece at hand
    fed: int = 0  # of which the model has read so many
    pieces: list[Piece] = field(default_factory=list)  # the finished ones
    written: int = 0  # tokens in these
    drawn: int = 0  # draws so far, stop tokens included: the position of the noise
    done: bool = False

    def __post_init__(self) -> None:
        self.begin(self.request.prompt)

    def begin(self, prompt: tuple[int, ...]) -> None:
        self.prompt, self.context, self.fed = prompt, list(prompt), 0

    @property
    def piece(self) -> Piece:
        return Piece(self.prompt, tuple(self.context[len(self.prompt) :]))

    @property
    def in_piece(self) -> int:
        return len(self.context) - len(self.prompt)

    @property
    def temperature(self) -> float:
        return self.request.sampling.temperature_at(self.in_piece)

    def end_piece(self) -> None:
        self.pieces.append(self.piece)
        self.written += self.in_piece
        again = self.request.restart_prompts
        self.begin(again[_pick(self.request.seed, len(self.pieces), len(again))] if again else self.request.prompt)

    def finished(self, ended: bool) -> Generated:
        return Generated(self.request.seed, (*self.pieces, self.piece), ended)


def _pick(seed: int, piece: int, choices: int) -> int:
    digest = hashlib.sha256(f"{seed} {piece}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % choices


def _write(
    lm: LanguageModel, todo: list[Request], new_tokens: int, eos: Ending, places: int, capacity: int, bar: tqdm
) -> Iterator[tuple[Request, Generated]]:
    """Yields texts as they end; a text that ends leaves its place to the next one."""
    slots = Slots(lm, places, capacity)
    stops = set(stop_tokens(lm))
    banned = torch.tensor(sorted(stops), device=lm.device) if eos == "ignore" else None
    waiting = [Row(request) for request in reversed(todo)]
    rows: list[Row | None] = [waiting.pop() for _ in range(slots.texts)]
    while any(rows):
        tokens = [row.context[row.fed] if row else 0 for row in rows]
        lengths = [row.fed if row else 0 for row in rows]
        logits = slots.step(torch.tensor(tokens, device=lm.device), torch.tensor(lengths, device=lm.device))
        for row in rows:
            if row:
                row.fed += 1
        drawing = {i: row for i, row in enumerate(rows) if row and row.fed == len(row.context)}
        for i, token in _draw(lm, drawing, logits, banned).items():
            row = drawing[i]
            row.drawn += 1
            if token not in stops:
                row.context.append(token)
                bar.update()
            elif eos == "restart":
                row.end_piece()
                refuse_stutter(lm, row)
            if row.written + row.in_piece == new_tokens or (token in stops and eos == "stop"):
                bar.update(new_tokens - row.written - row.in_piece)
                yield row.request, row.finished(ended=token in stops)
                rows[i] = waiting.pop() if waiting else None


def refuse_stutter(lm: LanguageModel, row: Row) -> None:
    if len(row.pieces) >= TRIES and row.written < SHORTEST * len(row.pieces):
        sample = [lm.tokenizer.decode(list(piece.ids)) for piece in row.pieces[-3:]]
        raise GenerationError(
            f"model '{lm.name}' ends its texts at once: {len(row.pieces)} starts gave {row.written} tokens, the last "
            f"ones {sample}. Use another prompt, another temperature or eos='ignore'"
        )


def _draw(
    lm: LanguageModel, rows: dict[int, Row], logits: torch.Tensor, banned: torch.Tensor | None
) -> dict[int, int]:
    """Next token of the rows `rows` of the logits `[places, vocabulary]`; rows of one setting are drawn together."""
    drawn: dict[int, int] = {}
    for sampling in {row.request.sampling: None for row in rows.values()}:
        indices = [i for i, row in rows.items() if row.request.sampling == sampling]
        part = logits if len(indices) == len(logits) else logits[indices]
        if not part.sum(1).isfinite().all():
            raise NumericalError(f"model '{lm.name}' gave logits that are not finite: load it in float32 or bfloat16")
        group = [rows[i] for i in indices]
        temperatures = torch.tensor([row.temperature for row in group], dtype=torch.float64, device=logits.device)
        context = _contexts(group, logits.device) if sampling.repetition_penalty != 1.0 else None
        keys = stream_key([row.request.seed for row in group], [row.drawn for row in group], logits.device)
        drawn.update(zip(indices, draw(part, temperatures, keys, sampling, context, banned).tolist(), strict=True))
    return drawn


def _contexts(rows: list[Row], device: torch.device) -> torch.Tensor:
    """Tokens of each text at hand, int64 `[rows, longest]`; shorter ones repeat their last token."""
    longest = max(len(row.context) for row in rows)
    return torch.tensor([row.context + row.context[-1:] * (longest - len(row.context)) for row in rows], device=device)


class _Journal:
    """Finished texts as JSON lines; the first line holds what they were written with."""

    def __init__(
        self, path: Path, lm: LanguageModel, requests: Sequence[Request], new_tokens: int, eos: Ending
    ) -> None:
        self.path = path
        kinds = list({json.dumps(r.settings(), sort_keys=True): None for r in requests})
        self.kind = {r: kinds.index(json.dumps(r.settings(), sort_keys=True)) for r in requests}
        self.header: dict[str, Any] = {
            "model": lm.fingerprint, "dtype": str(lm.dtype).removeprefix("torch."), "device": lm.device.type,
            "new_tokens": new_tokens, "eos": eos, "sampling": [json.loads(kind) for kind in kinds],
        }

    def read(self) -> dict[Request, Generated]:
        """Texts of an earlier run; a last line that was cut off is dropped. Starts the file if there is none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_text(encoding="utf8") if self.path.exists() else ""
        lines = content[: content.rfind("\n") + 1].splitlines()
        if not lines:
            self.path.write_text(json.dumps(self.header) + "\n", encoding="utf8")
            return {}
        try:
            header, records = json.loads(lines[0]), [json.loads(line) for line in lines[1:]]
            found = {(r["seed"], tuple(r["prompt"]), r["kind"]): _generated(r) for r in records}
            differing = [key for key in self.header if header[key] != self.header[key]]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"'{self.path}' holds no generated texts ({error}): name another or delete it") from None
        if differing:
            raise UsageError(
                f"'{self.path}' was written with other settings: "
                + "; ".join(f"{key} {header[key]} there, {self.header[key]} asked for" for key in differing)
                + ". Name another file, or ask for the settings it was written with"
            )
        if not content.endswith("\n"):
            self.path.write_text("\n".join(lines) + "\n", encoding="utf8")
        keyed = {request: (request.seed, request.prompt, kind) for request, kind in self.kind.items()}
        return {request: found[key] for request, key in keyed.items() if key in found}

    def append(self, request: Request, text: Generated) -> None:
        record = {
            "seed": request.seed, "prompt": request.prompt, "kind": self.kind[request], "ended": text.ended,
            "pieces": [[piece.prompt, piece.ids] for piece in text.pieces],
        }
        with open(self.path, "a", encoding="utf8") as handle:
            handle.write(json.dumps(record, separators=(",", ":")) + "\n")


def _generated(record: dict[str, Any]) -> Generated:
    pieces = tuple(Piece(tuple(prompt), tuple(ids)) for prompt, ids in record["pieces"])
    return Generated(record["seed"], pieces, record["ended"])
