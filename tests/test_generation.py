"""Generated text is a function of model, settings, prompt and seed; the decoder computes the model's own logits."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny import VOCABULARY, tiny_model

from igsp.errors import NumericalError, UsageError
from igsp.models import load_model
from igsp.text.likelihood import text_losses, window_losses
from igsp.writing.decoding import Slots
from igsp.writing.generation import GenerationError, Request, generate, stop_tokens, write_texts
from igsp.writing.sampling import Sampling, Schedule, _ranked, draw, gumbel, stream_key

DECODABLE = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "opt", "gpt2", "gpt_neox", "olmo2"]
PROMPTS = [[5], [6, 7, 8], [9, 10], [11, 12, 13, 14], [5], [20, 21]]
SEEDS = [3, 1, 4, 1, 5, 9]


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


# -- decoding: the model's own logits --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", DECODABLE)
def test_steps_give_the_logits_of_a_full_forward(family):
    """Rows of different lengths at once, one of them started anew half-way; windows shorter than the texts."""
    lm = tiny_model(family)
    texts = torch.randint(3, VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(0))
    expected = lm.model(texts, use_cache=False, attention_mask=torch.ones_like(texts)).logits
    before = lm.model.config._attn_implementation
    slots = Slots(lm, 3, 24)
    starts = [0, 5, 0]
    for step in range(24):
        at = [step - s if step >= s else 0 for s in starts]
        if step >= 10:
            at[2] = step - 10  # row 2 leaves its first text and writes it again from the start
        logits = slots.step(torch.tensor([texts[i, p] for i, p in enumerate(at)]), torch.tensor(at))
        for i, p in enumerate(at):
            torch.testing.assert_close(logits[i], expected[i, p], atol=2e-4, rtol=2e-4)
    assert lm.model.config._attn_implementation == before


def test_a_model_without_replaceable_attention_is_refused():
    with pytest.raises(UsageError, match="bloom"):
        Slots(tiny_model("bloom"), 2, 8)


# -- the same text whatever else happens -----------------------------------------------------------------------------

SETTINGS = [
    {}, {"temperature": Schedule(2.0, 1.0, 5)}, {"top_k": 7}, {"top_p": 0.7},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", SETTINGS)
@pytest.mark.parametrize("eos", ["stop", "restart", "ignore"])
def test_batch_size_order_and_neighbours_do_not_matter(dtype, changes, eos):
    lm = tiny_model("llama", dtype=dtype)
    run = lambda prompts, seeds, size: generate(  # noqa: E731
        lm, prompts, 20, seeds, eos=eos, batch_size=size, progress=False, **changes
    )
    together = run(PROMPTS, SEEDS, None)
    assert run(PROMPTS, SEEDS, 1) == run(PROMPTS, SEEDS, 4) == together
    assert run(PROMPTS[::-1], SEEDS[::-1], 3) == together[::-1]
    assert [run([p], [s], None)[0] for p, s in zip(PROMPTS, SEEDS, strict=True)] == together


def test_other_seeds_give_other_texts_and_equal_seeds_equal_ones(llama):
    texts = generate(llama, [[5]] * 20, 16, [*range(19), 0], eos="ignore", progress=False)
    assert len({tuple(t.ids) for t in texts}) == 19
    assert texts[0] == texts[19]


def test_seeds_of_any_size_are_taken(llama):
    big, small = generate(llama, [[5], [5]], 8, [2**64 - 1, 7], progress=False)
    assert big.seed == 2**64 - 1 and big.ids != small.ids


def test_texts_of_different_settings_share_a_batch(llama):
    requests = [Request(1, (5,)), Request(2, (6,), Sampling(top_k=1)), Request(3, (7,), Sampling(temperature=0.5))]
    together = write_texts(llama, requests, 12, "ignore", progress=False)
    assert together == [write_texts(llama, [r], 12, "ignore", progress=False)[0] for r in requests]


@pytest.mark.model
def test_the_real_model_in_bfloat16_keeps_its_texts():
    lm = load_model("smollm2-135m", device="cpu", dtype="bfloat16")
    prompts = [lm.tokenizer.encode("The river")] + [[1]] * 69
    texts = generate(lm, prompts, 8, range(70), batch_size=38, progress=False)  # every text in another row
    assert texts[::-1] == generate(lm, prompts[::-1], 8, range(70)[::-1], progress=False)


# -- what is written -------------------------------------------------------------------------------------------------


def test_greedy_text_is_that_of_transformers(llama):
    prompt = torch.tensor([[5, 6, 7]])
    theirs = llama.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20, eos_token_id=None
    )[0, 3:].tolist()
    ours = generate(llama, [[5, 6, 7]], 20, [0], temperature=0, progress=False)[0]
    stops = stop_tokens(llama)
    cut = next((i for i, token in enumerate(theirs) if token in stops), 20)
    assert ours.ids == theirs[:cut]


def test_stop_restart_and_ignore(llama):
    def write(eos):
        return generate(llama, [[5]] * 24, 30, list(range(24)), temperature=1.5, eos=eos, progress=False)

    stops = set(stop_tokens(llama))
    assert set(llama.tokenizer.all_special_ids) <= stops  # special tokens are no text
    stopped, restarted, ignored = write("stop"), write("restart"), write("ignore")
    assert any(t.ended for t in stopped) and any(len(t.pieces) > 1 for t in restarted)
    assert all(t.ended == (len(t.ids) < 30) and len(t.pieces) == 1 for t in stopped)
    assert all(len(t.ids) == 30 and not t.ended for t in restarted + ignored)
    assert all(len(t.pieces) == 1 for t in ignored)
    assert not stops & {token for t in stopped + restarted + ignored for token in t.ids}
    for first, whole in zip(stopped, restarted, strict=True):  # the first piece of a restarted text is the stopped one
        assert whole.pieces[0].ids == first.pieces[0].ids


def test_restart_prompts_begin_the_later_pieces(llama):
    again = ((40, 41), (50,))
    requests = [Request(i, (5,), Sampling(temperature=1.5), again) for i in range(24)]
    texts = write_texts(llama, requests, 30, "restart", progress=False)
    assert all(text.pieces[0].prompt == (5,) for text in texts)
    assert {piece.prompt for text in texts for piece in text.pieces[1:]} == set(again)


def test_a_piece_does_not_remember_the_ones_before():
    lm = tiny_model("llama")
    free = generate(lm, [[5]], 12, [0], temperature=0, progress=False)[0].ids
    lm.model.generation_config.eos_token_id = [next(token for token in free if token != free[0])]
    text = generate(lm, [[5]], 40, [0], temperature=0, eos="restart", progress=False)[0]
    assert len(text.pieces) > 2 and len({piece.ids for piece in text.pieces[:-1]}) == 1


def test_repetition_penalty_is_that_of_transformers(llama):
    prompt = torch.tensor([[5, 6, 7]])
    theirs = llama.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20, repetition_penalty=1.6,
        eos_token_id=None,
    )[0, 3:].tolist()
    ours = generate(llama, [[5, 6, 7]], 20, [0], temperature=0, repetition_penalty=1.6, progress=False)[0].ids
    assert ours == theirs[: len(ours)] and len(ours) > 3


def test_memory_bounds_the_texts_in_flight(llama, monkeypatch):
    expected = generate(llama, PROMPTS, 12, SEEDS, progress=False)
    each = 2 * 3 * 2 * 16 * 32 * 4  # keys and values, layers, heads, head size, positions, bytes
    monkeypatch.setattr("igsp.writing.decoding.CACHE_BYTES", 2 * each)
    assert Slots(llama, 6, 20).texts == 2
    assert generate(llama, PROMPTS, 12, SEEDS, progress=False) == expected
    monkeypatch.setattr("igsp.writing.decoding.CACHE_BYTES", 1)
    assert Slots(llama, 6, 20).texts == 1


def test_rows_follow_the_texts_only_where_the_products_agree(monkeypatch):
    lm = tiny_model("llama", dtype=torch.bfloat16)
    slots = Slots(lm, 3, 20)
    assert slots.width in (64, 128)
    monkeypatch.setattr("igsp.writing.decoding.torch.equal", lambda *a: False)
    assert Slots(lm, 3, 20).width == 128 and Slots(lm, 1000, 20).texts == 128
    assert not any("forward" in vars(module) for module in lm.model.modules())


# -- sampling --------------------------------------------------------------------------------------------------------


def share_of(sampling, logits, temperature=1.0, draws=40_000):
    rows = logits.expand(draws, -1)
    keys = stream_key([7] * draws, range(draws))
    tokens = draw(rows, torch.full((draws,), temperature, dtype=torch.float64), keys, sampling)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / draws


@pytest.mark.parametrize("size", [5, 64, 200])
def test_tokens_are_drawn_at_their_probabilities(size):
    logits = torch.randn(size, generator=torch.Generator().manual_seed(1)) * 2
    expected = (logits / 0.7).softmax(0)
    error = (share_of(Sampling(), logits, 0.7) - expected).abs()
    assert (error < 4.5 * (expected * (1 - expected) / 40_000).sqrt() + 1e-4).all()


def test_top_k_and_top_p_keep_the_right_tokens():
    logits = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()
    assert (share_of(Sampling(top_k=2), logits) > 0).tolist() == [True, True, False, False, False]
    assert (share_of(Sampling(top_p=0.6), logits) > 0).tolist() == [True, True, False, False, False]
    assert (share_of(Sampling(top_p=0.5), logits) > 0).tolist() == [True, False, False, False, False]
    assert (share_of(Sampling(top_k=4, top_p=0.85), logits) > 0).tolist() == [True, True, True, False, False]
    kept = share_of(Sampling(top_k=2), logits)
    assert abs(kept[0] - 5 / 7) < 0.02


@pytest.mark.parametrize("k", [1, 3, 50])
def test_the_short_cut_to_the_top_finds_what_sorting_finds(k):
    scores = torch.randn(6, 40_000, generator=torch.Generator().manual_seed(2)).bfloat16().float()  # many ties
    values, tokens = _ranked(scores, k)
    for row, value, token in zip(scores, values, tokens, strict=True):
        limit = row.sort(descending=True).values[k - 1]
        expected = {i for i, v in enumerate(row.tolist()) if v >= limit}
        assert {int(t) for v, t in zip(value, token, strict=True) if v > -math.inf} == expected
        assert (value.diff() <= 0).all() or value.isinf().any()


def test_noise_is_a_function_of_seed_position_and_token():
    keys = stream_key([1, 2, 1], [0, 0, 1])
    noise = gumbel(keys, torch.arange(1000))
    assert torch.equal(noise[:, 500:510], gumbel(keys, torch.arange(500, 510)))
    assert abs(torch.corrcoef(noise)[0, 1]) < 0.1 and abs(torch.corrcoef(noise)[0, 2]) < 0.1
    many = gumbel(stream_key([3] * 100, range(100)), torch.arange(1000))
    assert abs(many.mean() - 0.5772) < 0.02 and abs(many.var() - math.pi**2 / 6) < 0.05


def test_schedule_is_a_line_and_then_flat():
    schedule = Schedule(2.0, 1.0, 10)
    assert [schedule.at(i) for i in (0, 5, 10, 99)] == [2.0, 1.5, 1.0, 1.0]
    assert Schedule(2.0, 1.0, 0).at(0) == 1.0


# -- resuming --------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_gives_the_same_texts(llama, tmp_path, monkeypatch):
    journal = tmp_path / "texts.jsonl"
    whole = generate(llama, PROMPTS, 20, SEEDS, progress=False)
    assert generate(llama, PROMPTS, 20, SEEDS, batch_size=2, progress=False, resume=journal) == whole
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:3]) + lines[3][:17])  # killed in the middle of the third text
    steps = []
    monkeypatch.setattr(Slots, "step", lambda self, *a, _step=Slots.step: steps.append(1) or _step(self, *a))
    assert generate(llama, PROMPTS, 20, SEEDS, progress=False, resume=journal) == whole
    assert steps and len(journal.read_text().splitlines()) == 1 + len(PROMPTS)
    steps.clear()
    assert generate(llama, PROMPTS, 20, SEEDS, progress=False, resume=journal) == whole and not steps


def test_more_texts_can_be_added_to_a_file(llama, tmp_path):
    journal = tmp_path / "texts.jsonl"
    generate(llama, PROMPTS[:2], 20, SEEDS[:2], progress=False, resume=journal)
    assert generate(llama, PROMPTS, 20, SEEDS, progress=False, resume=journal) == generate(
        llama, PROMPTS, 20, SEEDS, progress=False
    )
    assert len(journal.read_text().splitlines()) == 1 + len(PROMPTS)


def test_a_file_of_another_run_is_refused_and_left_alone(llama, tmp_path):
    journal = tmp_path / "texts.jsonl"
    generate(llama, PROMPTS, 8, SEEDS, progress=False, resume=journal)
    before = journal.read_bytes()
    for lm, changes, named in (
        (tiny_model("gpt2"), {}, "model"), (llama, {"temperature": 0.5}, "sampling"), (llama, {"eos": "ignore"}, "eos"),
        (tiny_model("llama", dtype=torch.bfloat16), {}, "dtype"),
    ):
        with pytest.raises(UsageError, match=f"other settings: .*{named}"):
            generate(lm, PROMPTS, 8, SEEDS, progress=False, resume=journal, **changes)
    with pytest.raises(UsageError, match="other settings: new_tokens 8 there, 9 asked for"):
        generate(llama, PROMPTS, 9, SEEDS, progress=False, resume=journal)
    assert journal.read_bytes() == before
    journal.write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(UsageError, match="no generated texts"):
        generate(llama, PROMPTS, 8, SEEDS, progress=False, resume=journal)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, match", [
    ({"temperature": -1}, "temperature"), ({"temperature": math.nan}, "temperature"), ({"top_k": 0}, "top_k"),
    ({"top_p": 0}, "top_p"), ({"top_p": 1.5}, "top_p"), ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"eos": "halt"}, "did you mean|known: "), ({"batch_size": 0}, "batch_size"), ({"new_tokens": 0}, "new_tokens"),
    ({"new_tokens": 64}, "64 positions"), ({"prompts": [[]]}, "prompt is empty"), ({"seeds": [1, 2]}, "2 seeds"),
    ({"prompts": [[VOCABULARY]]}, "outside the 128"), ({"temperature": Schedule(1, 1, -1)}, "steps"),
])
def test_bad_settings_are_refused_by_name(llama, changes, match):
    arguments = {"prompts": [[5]], "new_tokens": 4, "seeds": [0], "progress": False} | changes
    with pytest.raises(UsageError, match=match):
        generate(llama, **arguments)


def test_a_model_that_ends_at_once_is_given_up():
    lm = tiny_model("llama")
    lm.model.generation_config.eos_token_id = list(range(VOCABULARY))
    with pytest.raises(GenerationError, match="16 starts gave 0 tokens"):
        generate(lm, [[5]], 20, [0], eos="restart", progress=False)


def test_logits_that_are_not_numbers_are_named():
    lm = tiny_model("llama")
    lm.model.lm_head.weight[7] = math.nan
    with pytest.raises(NumericalError, match="not finite"):
        generate(lm, [[5]], 4, [0], progress=False)


def test_no_texts_asked_for_gives_none(llama):
    assert generate(llama, [], 4, [], progress=False) == []


# -- likelihood ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_window_losses_are_the_mean_cross_entropy(family, batch_size, monkeypatch):
    lm = tiny_model(family)
    monkeypatch.setattr("igsp.text.likelihood.LOGITS_PER_CHUNK", 5 * VOCABULARY)  # several chunks a window
    ids = torch.randint(0, VOCABULARY, (5, 17), generator=torch.Generator().manual_seed(0))
    logs = lm.model(ids).logits.double().log_softmax(-1)
    expected = -logs[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2).mean(1)
    losses = window_losses(lm, ids, batch_size, progress=False)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, atol=1e-5, rtol=1e-5)


def test_texts_of_many_lengths_have_the_losses_they_have_alone(llama):
    texts = [list(range(3, 3 + n)) for n in (2, 30, 7, 13)]
    together = text_losses(llama, texts, progress=False)
    alone = torch.cat([window_losses(llama, torch.tensor([text]), progress=False) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_losses_refuse_bad_input(llama):
    with pytest.raises(UsageError, match="at least 2 tokens"):
        window_losses(llama, torch.zeros(3, 1, dtype=torch.int64), progress=False)
    with pytest.raises(UsageError, match="64 positions"):
        window_losses(llama, torch.zeros(1, 65, dtype=torch.int64), progress=False)
    broken = tiny_model("llama")
    broken.model.lm_head.weight[7] = math.nan
    with pytest.raises(NumericalError, match="not finite on window 0"):
        window_losses(broken, torch.zeros(1, 5, dtype=torch.int64), progress=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batch_size_does_not_matter_on_a_gpu():
    lm = tiny_model("llama")
    lm.model.to("cuda")
    texts = generate(lm, PROMPTS, 20, SEEDS, progress=False)
    assert generate(lm, PROMPTS, 20, SEEDS, batch_size=2, progress=False) == texts
