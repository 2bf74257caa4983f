"""Self-written sets in the book: samples chosen by rule, no corpus text, a notebook at any stage of the run."""

from __future__ import annotations

import functools
import sys

import jupytext
import matplotlib.pyplot as plt
import pytest
from tiny import tiny_model
from toy import toy_scores

from igsp.provenance import repository_root
from igsp.scoring.retention import Estimate
from igsp.study.analysis import verdict
from igsp.study.recorded import reference
from igsp.study.records import Record, Store
from igsp.study.study import Cell, Study, cells, settings, strategies
from igsp.study.texts import Texts
from igsp.text.catalogue import DIMENSIONS, Document
from igsp.text.likelihood import window_losses
from igsp.text.metrics import CORRELATED

ROOT = repository_root()

TOKENS, PREFIX = 6, 4
TEXTS = [Document(str(i), " ".join(f"w{3 + (7 * i + j) % 120}" for j in range(9))) for i in range(60)]


class TinyTexts(Texts):
    """Calibration text of profile `small` in miniature, of a tiny random model."""

    numbers = {"model": "tiny", "device": "cpu", "dtype": "float32"}  # noqa: RUF012

    @functools.cached_property
    def lm(self):
        model = tiny_model("llama")
        model.tokenizer.add_special_tokens({"bos_token": "w126", "eos_token": "w127"})
        return model


class TinyStudy(Study):
    _suite = "suite"

    def __init__(self, *arguments, **overrides):
        super().__init__(*arguments, **overrides)
        self.texts = TinyTexts(self.settings)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["igsp.writing.sgs"], "documents", lambda source, split: TEXTS)
        patch.setenv("IGSP_CACHE", str(folder / "cache"))
        study = TinyStudy("small", folder / "store", n=4, seqlen=32, pool={"oversample": 1})
        study.writing(tokens=TOKENS)
        yield study


@pytest.fixture
def samples(study):
    return {row["written by"]: row for row in study.writing(tokens=TOKENS)}


def test_a_sample_is_the_beginning_of_the_window_of_median_perplexity(study, samples):
    made = study.calibration("self-cal")
    losses = window_losses(study.lm, made.input_ids, progress=False)
    middle = losses.argsort()[2]
    assert samples["self-cal"]["text"] == study.lm.tokenizer.decode(made.input_ids[middle, :TOKENS])
    assert samples["self-cal"]["perplexity"] == pytest.approx(float(losses[middle].exp()))


def test_every_protocol_and_pool_has_one(study, samples):
    pools = {"self:bos": "general", "self:general": "general", "self:commonsense": "commonsense",
             "self:code": "code", "self:math": "math"}
    assert {name: row["dimension"] for name, row in samples.items()} == {"self-cal": "", "sgs": "", **pools}
    assert sum(samples[name]["windows"] for name in pools) == study.pool().n


def test_a_sample_of_sgs_holds_what_the_model_wrote_and_not_the_prefix(study, samples):
    text, head = samples["sgs"]["text"].split(), 2  # the text may run over the end of its window
    windows = [study.lm.tokenizer.decode(row).split() for row in study.calibration("sgs").input_ids]
    before = [tuple(w[i - PREFIX : i]) for w in windows for i in range(len(w)) if w[i : i + head] == text[:head]]
    assert set(before) & {tuple(document.text.split()[:PREFIX]) for document in TEXTS}


def test_samples_are_recorded_once(study, samples, monkeypatch):
    monkeypatch.setattr(TinyTexts, "samples", lambda *_: pytest.fail("computed again"))
    assert study.writing(tokens=TOKENS) == list(samples.values())
    record = next(study.store.records())
    assert record.spec["stage"] == "writing"
    for name, trace in record.metrics["traces"].items():
        for kept, step in zip(trace, study.selection(name).trace, strict=True):
            assert kept == pytest.approx(vars(step), rel=1e-6)


# -- the notebook that reads the records -----------------------------------------------------------------------------

PLAN = settings("small")
OWN = [name for name, strategy in strategies(PLAN).items() if strategy.kind in ("protocol", "selection")]
NUMBERS = {"model": "m", "suite": "s", "device": "cpu", "dtype": "bfloat16"}


def put(store, stage, name, draw, about, **spec):
    spec = {"stage": stage, "strategy": name, "draw": draw, "n": PLAN.n, "seqlen": PLAN.seqlen, **NUMBERS, **spec}
    store.put(Record(spec, {**about, "seconds": {"prune": 1.0}, "mask": ""}, {}))


def fill(root, profile, keep=lambda cell: True):
    """Records of a profile's grid; a strategy keeps the more, the later it stands in the grid."""
    plan, store = settings(profile), Store(root / profile)
    put(store, "dense", "dense", 0, {"scores": toy_scores(1.0).to_dict()})
    names = list(strategies(plan))
    for cell in cells(plan):
        if cell.sparsity != plan.sparsity or not keep(cell):
            continue
        place = names.index(cell.strategy) + 1
        scores = toy_scores(2 - 0.02 * place + 0.001 * cell.draw).to_dict()
        amount = {"method": cell.method, "sparsity": cell.sparsity, "pattern": None}
        put(store, "cell", cell.strategy, cell.draw, {"scores": scores}, **amount)
        told = {**dict.fromkeys(CORRELATED, 1 / place), **{f"mismatch_{d}": 1 / place for d in DIMENSIONS}}
        put(store, "metrics", cell.strategy, cell.draw, {"information": told})
    samples = [{"written by": "sgs", "dimension": "", "windows": 2, "perplexity": 3.0, "text": "made up"}]
    put(store, "writing", "", 0, {"samples": samples})


def read_aloud(folder, monkeypatch):
    """Runs notebook 09 on the records of a checkout; what its cells wrote as Markdown, and the values it published."""
    (folder / "_toc.yml").touch()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("igsp.figures.show", lambda fig, alt, caption, name: plt.close(fig))
    monkeypatch.setattr("igsp.figures.show_table", lambda frame, caption, digits=2: print(caption, *frame))
    monkeypatch.setattr("IPython.display.display", lambda shown: said.append(shown.data))
    said, names = [], {}
    for cell in jupytext.read(ROOT / "notebooks" / "09-self-written.py").cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "notebook 09", "exec"), names)
    return "\n".join(said), Store(folder / "book" / "results" / "quick").values()


def test_the_notebook_judges_by_the_records(tmp_path, monkeypatch):
    for profile in ("small", "small-ablation"):
        fill(tmp_path / "book" / "results", profile)
    said, values = read_aloud(tmp_path, monkeypatch)
    assert reference("small").writing.text.tolist() == ["made up"]
    place = list(strategies(PLAN)).index
    gap = 100 / (1.979 - 0.02 * place("igsp") + 0.001) - 100 / (1.979 - 0.02 * place("sgs") + 0.001)
    assert values["small/igsp-minus-sgs"]["value"] == pytest.approx(gap, rel=0.02)
    assert {v["draws"] for k, v in values.items() if "igsp-minus" in k} == {3}
    line = next(line for line in said.splitlines() if line.startswith("- Under SparseGPT IGSP (equal means)"))
    assert "ahead of Self-Cal (+" in line and "behind pool-random (\N{MINUS SIGN}" in line
    assert "small/wanda/igsp-thirds-minus-best-single" in values and "small/ablation/order-2" in values


@pytest.mark.parametrize(
    "keep",
    [
        lambda cell: cell.strategy not in OWN,
        lambda cell: cell.strategy not in OWN or (cell.strategy == "igsp" and cell.draw == 0),
        lambda cell: cell.strategy not in OWN or (cell.method == "sparsegpt" and cell.draw < 2),
    ],
    ids=["none", "one cell", "two draws"],
)
def test_the_notebook_says_what_is_missing_and_publishes_what_is_there(tmp_path, monkeypatch, capsys, keep):
    fill(tmp_path / "book" / "results", "small", keep)
    said, values = read_aloud(tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    for text in ("Not recorded yet, by strategy", "--profile small`", "--profile small-ablation`"):
        assert text in printed
    assert ("small/igsp-minus-sgs" in values) == keep(Cell("sgs", 0, "sparsegpt", 0.6))
    assert ("Nothing is recorded yet" in said) == (not keep(Cell("igsp", 0, "sparsegpt", 0.6)))


@pytest.mark.parametrize(
    "gap, noise, expected",
    [
        ((1.0, 0.5, 1.5), 0.4, "ahead"),
        ((-1.0, -1.5, -0.5), 0.4, "behind"),
        ((1.0, 0.5, 1.5), 0.6, "not told apart"),
        ((1.0, -0.1, 2.1), 0.1, "not told apart"),
        ((1.0, 0.5, 1.5), float("nan"), "noise unknown"),
    ],
)
def test_a_verdict_needs_the_interval_and_the_noise_floor(gap, noise, expected):
    assert verdict(Estimate(*gap), noise) == expected
