"""The book's machinery: published values, verdicts, executed notebooks, and a small strict build."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from igsp_book import build as book_build
from igsp_book import executed

from igsp.errors import AssetError, UnknownName, UsageError
from igsp.study import claims as ledger
from igsp.study import mixtures
from igsp.study.values import Value, explain, look_up, number, read_values, render

ROOT = Path(__file__).parents[1]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
ALT = "Retention by source: wiki 61.2 %, code 55.0 %, the mix 68.4 %."


# Published values


def entry(**changes: Any) -> dict[str, Any]:
    return {"value": 58.83, "low": 57.1, "high": 60.2, "unit": "%", "digits": 1, "n": 3, "label": None,
            "notebook": "04-uniform-mix", **changes}


def test_values_of_all_notebooks_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"uniform/total": entry()}))
    (tmp_path / "b.json").write_text(json.dumps({"web/total": entry(value=40.0, later_field=1)}))
    values = read_values(tmp_path)
    assert {key: v.value for key, v in values.items()} == {"uniform/total": 58.83, "web/total": 40.0}
    assert read_values(tmp_path / "nowhere") == {}


def test_a_key_published_twice_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(json.dumps({"uniform/total": entry()}))
    with pytest.raises(AssetError, match="uniform/total"):
        read_values(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", '{"k": {}}', '{"k": 3}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(AssetError, match=r"broken\.json"):
        read_values(tmp_path)


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="uniform/total"):
        look_up({"uniform/total": Value(1.0)}, "uniform/totl")


@pytest.mark.parametrize(("x", "digits", "signed", "text"), [
    (58.83, 1, False, "58.8"), (-0.591, 2, True, "−0.59"), (0.71, 2, True, "+0.71"), (-0.004, 2, False, "0.00"),
    (0.0, 1, True, "0.0"), (1234.5, 0, False, "1234"),
])
def test_numbers_are_printed_with_a_true_minus(x: float, digits: int, signed: bool, text: str) -> None:
    assert number(x, digits, signed) == text


def test_every_format_of_a_value() -> None:
    value = Value(**entry(label="alice", p=0.0004, p_holm=0.012))
    plain = {form: render(value, form).replace("\N{NO-BREAK SPACE}", " ") for form in
             ("value", "interval", "signed", "signed-interval", "number", "n", "p", "p-holm", "label")}
    assert plain == {
        "value": "58.8 %", "interval": "58.8 % (57.1 to 60.2)", "signed": "+58.8 %",
        "signed-interval": "+58.8 % (+57.1 to +60.2)", "number": "58.8", "n": "3", "p": "< 0.001", "p-holm": "0.012",
        "label": "alice",
    }
    with pytest.raises(UnknownName, match="interval"):
        render(value, "intervall")
    with pytest.raises(UsageError, match="no label"):
        render(dataclasses.replace(value, label=None), "label")
    assert "57.1 to 60.2" in explain("uniform/total", value)


# Verdicts


def verdict(rule: dict[str, Any], profile: str = "quick", **values: tuple[float, float | None, float | None]) -> str:
    used = {key: Value(v, low, high) for key, (v, low, high) in values.items()}
    row = ledger.Claim("id", "t", "s", "abstract", "primary", "p", "s", tuple(values), rule, "n", "d")
    return ledger.judge(row, used, profile).verdict.status


@pytest.mark.parametrize(("value", "expect", "status"), [
    ((0.7, 0.3, 0.9), "+", ledger.HOLDS), ((0.7, 0.3, 0.9), "-", ledger.DIFFERS),
    ((-0.5, -0.8, -0.1), "-", ledger.HOLDS), ((0.7, -0.1, 0.9), "+", ledger.UNTESTABLE),
    ((-0.2, -0.6, 0.3), "+", ledger.UNTESTABLE), ((0.7, None, None), "+", ledger.HOLDS),
])
def test_a_sign_is_decided_only_by_the_whole_interval(value: Any, expect: str, status: str) -> None:
    assert verdict({"kind": "sign", "expect": expect}, k=value) == status


def test_too_few_draws_decide_nothing() -> None:
    rule = {"kind": "greater", "than": 0, "draws": 3}
    row = ledger.Claim("id", "t", "s", "abstract", "primary", "p", "s", ("k",), rule, "n", "d")
    for draws, status in ((1, ledger.UNTESTABLE), (3, ledger.HOLDS), (None, ledger.HOLDS)):
        judged = ledger.judge(row, {"k": Value(2.0, 1.0, 3.0, draws=draws)}, "quick")
        assert judged.verdict.status == status
    lucky = Value(0.3, 0.1, 0.6, draws=3, noise=0.2)
    assert ledger.judge(row, {"k": lucky}, "quick").verdict.status == ledger.UNTESTABLE, "two draws differ by as much"
    sure = dataclasses.replace(lucky, noise=0.1)
    assert ledger.judge(row, {"k": sure}, "quick").verdict.status == ledger.HOLDS
    assert "1 of the 3 draws" in ledger.judge(row, {"k": Value(2.0, 1.0, 3.0, draws=1)}, "quick").verdict.reason


def test_the_other_rules() -> None:
    greater = {"kind": "greater", "than": 2}
    assert verdict(greater, k=(4, 2.5, 6)) == ledger.HOLDS
    assert verdict(greater, k=(4, 1, 6)) == ledger.UNTESTABLE
    assert verdict(greater, k=(1, 0, 1.9)) == ledger.DIFFERS
    ordered = {"kind": "ordered", "smaller": "a", "larger": "b"}
    assert verdict(ordered, a=(1, None, None), b=(2, None, None)) == ledger.HOLDS
    assert verdict(ordered, a=(3, None, None), b=(2, None, None)) == ledger.DIFFERS
    assert verdict(ordered, a=(1, 0, 2.5), b=(2, 1.5, 3)) == ledger.UNTESTABLE
    assert verdict(ordered, a=(3, 2.8, 3.2), b=(2, 1.5, 2.5)) == ledger.DIFFERS
    opposite = {"kind": "opposite", "positive": "a", "negative": ["b", "c"]}
    up, down, open_ = (0.6, 0.2, 0.8), (-0.6, -0.8, -0.2), (0.1, -0.3, 0.4)
    assert verdict(opposite, a=up, b=open_, c=down) == ledger.HOLDS
    assert verdict(opposite, a=up, b=up, c=up) == ledger.DIFFERS
    assert verdict(opposite, a=down, b=down, c=down) == ledger.DIFFERS
    assert verdict(opposite, a=up, b=open_, c=open_) == ledger.UNTESTABLE
    both, values = {**ordered, "measures": ["m"]}, {"a": (1, 0, 1.4), "b": (2, 1.5, 3), "a/m/": (1, 0, 1.4)}
    assert verdict(both, **values, **{"b/m/": (2, 1.5, 3)}) == ledger.HOLDS
    assert verdict(both, **values, **{"b/m/": (1, 0, 3)}) == ledger.UNTESTABLE, "by one measure only"
    within = {"kind": "within", "of": 58.8, "by": 3.0, "profiles": ["paper"]}
    assert verdict(within, profile="paper", k=(57, None, None)) == ledger.HOLDS
    assert verdict(within, profile="paper", k=(50, None, None)) == ledger.DIFFERS
    assert verdict(within, profile="quick", k=(57, None, None)) == ledger.UNTESTABLE


def test_a_correlation_is_decided_by_the_corrected_p_not_by_its_interval() -> None:
    for p_holm, status in ((0.13, ledger.UNTESTABLE), (0.04, ledger.HOLDS)):
        value = Value(0.7, 0.28, 0.89, p=0.004, p_holm=p_holm, n=15)
        for rule in ({"kind": "sign", "expect": "+"}, {"kind": "opposite", "positive": "k", "negative": ["n"]}):
            row = ledger.Claim("id", "t", "s", "abstract", "primary", "p", "s", ("k", "n"), rule, "n", "d")
            used = {"k": value, "n": dataclasses.replace(value, value=-0.8, p_holm=0.03)}
            found = ledger.judge(row, used, "quick").verdict
            assert found.status == status
            assert rule["kind"] != "sign" or "correction" in found.reason


def test_bad_claims_are_refused() -> None:
    with pytest.raises(UnknownName, match="greater"):
        verdict({"kind": "greate", "than": 0}, k=(1, None, None))
    row = ledger.claims()[0]
    with pytest.raises(UnknownName, match="result"):
        ledger.judge(row, {}, "quick")
    with pytest.raises(UnknownName, match=row.id):
        ledger.claim(row.id + "x")


def test_the_catalogue_of_claims_is_complete() -> None:
    rows = ledger.claims()
    assert len({row.id for row in rows}) == len(rows) >= 10
    for row in rows:
        assert row.rule["kind"] in ledger.RULES and row.status in ("primary", "secondary", "check") and row.ours
        named = {row.rule.get(name) for name in ("smaller", "larger", "positive")} - {None}
        assert named | set(row.rule.get("negative", [])) <= set(row.ours)


# Executed notebooks


def executed_notebook() -> dict[str, Any]:
    figure = {"output_type": "display_data", "data": {"image/png": PNG, "text/plain": "Figure"},
              "metadata": {"igsp": {"alt": ALT, "caption": "The mix keeps most.", "name": "fig-kept"}}}
    caption = {"output_type": "display_data", "data": {"text/markdown": "*The mix keeps most.*"},
               "metadata": {"igsp": {"caption_of": "fig-kept"}}}
    second = copy.deepcopy(figure) | {"metadata": {"igsp": {"alt": ALT + " Again."}}}
    stream = {"output_type": "stream", "name": "stdout", "text": "done\n"}

    def code(identity: str, source: str, outputs: list[dict[str, Any]], *tags: str) -> dict[str, Any]:
        return {"cell_type": "code", "id": identity, "source": source, "outputs": outputs, "execution_count": 1,
                "metadata": {"tags": list(tags)}}

    return {
        "nbformat": 4, "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
            "papermill": {"end_time": "2026-01-01T00:00:00+00:00", "exception": None},
            "igsp": {"notebook": "01-first", "source": "notebooks/01-first.py", "profile": "quick", "seconds": 75.0,
                     "device": "cpu", "dtype": "bfloat16", "seed": 0, "package": "aa" * 32, "commit": "0123456789ab",
                     "dirty": True, "model": {"name": "tiny", "fingerprint": "ff" * 32},
                     "parameters": [
                         {"name": "sparsity", "type": "float", "default": 0.6, "value": 0.5, "help": "zeros"},
                         {"name": "label", "type": "str", "default": "a", "value": "b c", "help": "name"}]},
        },
        "cells": [
            {"cell_type": "markdown", "id": "title", "metadata": {},
             "source": "# First\n\nIt keeps {result}`uniform/total`."},
            code("p", "sparsity = 0.6", [], "parameters"), code("i", "sparsity = 0.5", [], "injected-parameters"),
            code("f", "show(fig)", [stream, figure, caption, second]),
        ],
    }


def test_a_finished_notebook_has_no_problem() -> None:
    assert list(executed.problems(executed_notebook(), "quick")) == []


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda nb: nb["metadata"].pop("igsp"), "no metadata"),
    (lambda nb: nb["metadata"]["igsp"].update(profile="small"), "profile 'small'"),
    (lambda nb: nb["metadata"]["papermill"].update(end_time=None), "not executed to its end"),
    (lambda nb: nb["metadata"]["papermill"].update(exception=True), "not executed to its end"),
    (lambda nb: nb["cells"][3]["outputs"].append({"output_type": "error", "ename": "E"}), "error in cell 4"),
    (lambda nb: nb["cells"][3]["outputs"][1]["metadata"]["igsp"].update(alt="a plot"), "alt text under"),
    (lambda nb: nb["cells"][3]["outputs"][1]["metadata"]["igsp"].pop("alt"), "without alt text"),
])
def test_a_spoilt_notebook_is_kept_out(spoil: Any, words: str) -> None:
    notebook = executed_notebook()
    spoil(notebook)
    assert any(words in problem for problem in executed.problems(notebook, "quick"))


def test_figures_carry_their_alt_text_into_cells_of_their_own() -> None:
    original = executed_notebook()
    before = copy.deepcopy(original)
    prepared = executed.prepare(original)
    assert original == before, "the notebook that readers download must stay as it was executed"
    assert [cell["id"] for cell in prepared["cells"]] == [
        "title", "notebook-panel", "f", "f-figure-0", "f-figure-1", "notebook-provenance"]
    assert [o["output_type"] for o in prepared["cells"][2]["outputs"]] == ["stream"]
    lifted = prepared["cells"][3]["metadata"]["mystnb"]
    assert lifted["image"]["alt"] == ALT
    assert lifted["figure"] == {"caption": "The mix keeps most.", "classes": "igsp-figure", "name": "fig-kept"}


def test_commands_repeat_the_run() -> None:
    about = executed_notebook()["metadata"]["igsp"]
    assert executed.runner_command(about) == (
        "igsp notebooks run 01-first --profile quick -p sparsity 0.5 -p label 'b c'")
    assert executed.papermill_command(about) == (
        "papermill -k python3 notebooks/01-first.ipynb out-01-first.ipynb -p sparsity 0.5 -p label 'b c'")


@pytest.mark.parametrize(("seconds", "text"), [(4.23, "4.2 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert executed.duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


# Mixes of the advice


def mixes(n: int) -> np.ndarray:
    """Shares `[n, 3]` of mixes all over the triangle, each in whole windows of 20."""
    counts = np.array([(i, j, 20 - i - j) for i in range(21) for j in range(21 - i)])
    return counts[np.random.default_rng(0).permutation(len(counts))[:n]] / 20


def test_a_surface_finds_the_form_behind_the_measurements() -> None:
    shares = mixes(12)
    a, b, c = shares.T
    curved = np.column_stack([60 * a + 70 * b + 50 * c + 8 * a * b, 55 * a + 40 * b + 45 * c - 6 * b * c])
    found = mixtures.fit(shares, curved, ["general", "code"])
    assert found.form == "quadratic" and max(found.error.values()) < 1e-9
    assert found.coefficients["general"] == pytest.approx([60, 70, 50, 8, 0, 0])
    steps = np.column_stack([np.where(a > 0.3, 90.0, 10.0)])
    few = mixtures.fit(shares[:4], steps[:4], ["general"])
    assert few.form != "quadratic", "six coefficients need more than four mixes"


@pytest.mark.parametrize("form", ["quadratic", "linear", "nearest"])
def test_left_out_errors_are_those_of_fits_without_the_mix(form: str) -> None:
    shares = mixes(10)
    kept = np.random.default_rng(1).normal(60, 3, (10, 2))
    for out, error in enumerate(mixtures.left_out(shares, kept, form)):
        others = np.arange(10) != out
        if form == "nearest":
            guess = kept[others][np.linalg.norm(shares[others] - shares[out], axis=1).argmin()]
        else:
            solved = np.linalg.lstsq(mixtures.terms(shares[others], form), kept[others], rcond=None)[0]
            guess = mixtures.terms(shares[[out]], form)[0] @ solved
        assert error == pytest.approx(kept[out] - guess)


# The archive of a release


def test_an_archive_is_the_same_twice_and_its_checksum_fits(tmp_path: Path) -> None:
    for name in ("_build/html/index.html", "book/notebooks/01.ipynb", "book/results/quick/values/01.json", "LICENSE"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    with pytest.raises(UsageError, match=r"CITATION\.cff.*make book"):
        book_build.archive(tmp_path, tmp_path / "a")
    (tmp_path / "CITATION.cff").write_text("c")
    first, second = (book_build.archive(tmp_path, tmp_path / out) for out in "ab")
    assert first.read_bytes() == second.read_bytes()
    digest, name = (tmp_path / "a" / f"{first.name}.sha256").read_text().split()
    assert name == first.name and digest == hashlib.sha256(first.read_bytes()).hexdigest()
    with zipfile.ZipFile(first) as packed:
        inside = {name.split("/", 1)[1] for name in packed.namelist()}
        assert inside == {"html/index.html", "notebooks/01.ipynb", "values/01.json", "LICENSE", "CITATION.cff"}


# The worked examples of the prose


def test_the_three_weight_example_of_the_primer() -> None:
    w = np.array([1.0, 1.1, 1.2])
    x = np.array([[2, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1]], dtype=float)
    hessian = x @ x.T
    inverse = np.linalg.inv(hessian)
    assert np.allclose(inverse * 12, [[5, -4, 2], [-4, 8, -4], [2, -4, 8]])
    assert np.allclose(np.abs(w) * np.sqrt(hessian.diagonal()), [2.0, 1.91, 1.70], atol=5e-3)
    saliency = w**2 / inverse.diagonal()
    assert np.allclose(saliency, [2.400, 1.815, 2.160])
    rows = w - (w / inverse.diagonal())[:, None] * inverse  # row q: the weights after q was removed
    assert np.allclose(rows, [[0, 1.9, 0.8], [1.55, 0, 1.75], [0.7, 1.7, 0]])
    errors = [(row - w) @ hessian @ (row - w) for row in rows]
    assert np.allclose(errors, saliency)
    upper = np.linalg.cholesky(inverse).T
    assert np.allclose(w**2 / upper.diagonal() ** 2, [2.400, 3.025, 2.880])
    hessian[2, 2] = 10
    assert np.allclose(np.abs(w) * np.sqrt(hessian.diagonal()), [2.0, 1.91, 3.79], atol=6e-3)
    text = (ROOT / "book" / "primer-pruning.md").read_text(encoding="utf8")
    for printed in ("1.815", "2.880", "2.400", "3.025", "(1.55,\\ 0,\\ 1.75)", "(0,\\ 1.9,\\ 0.8)", "1.91 and 3.79"):
        assert printed in text


def test_the_power_table_of_the_primer() -> None:
    rng = np.random.default_rng(0)
    n, trials = 15, 20000

    def rho(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        gaps = x.argsort(1).argsort(1) - y.argsort(1).argsort(1)
        return 1 - 6 * (gaps.astype(float) ** 2).sum(1) / (n * (n * n - 1))

    x = rng.standard_normal((trials, n))
    limit = np.quantile(np.abs(rho(x, rng.standard_normal((trials, n)))), 0.95)
    assert limit == pytest.approx(0.52, abs=0.01)
    text = (ROOT / "book" / "primer-rank-correlation.md").read_text(encoding="utf8")
    row = next(line for line in text.splitlines() if "at the 5 % level" in line)
    printed = [int(share) for share in re.findall(r"\| (\d+)(?= \|)", row)]
    for true, share in zip((0.3, 0.4, 0.5, 0.6, 0.7, 0.8), printed, strict=True):
        r = 2 * np.sin(np.pi * true / 6)
        y = r * x + np.sqrt(1 - r * r) * rng.standard_normal((trials, n))
        assert 100 * np.mean(np.abs(rho(x, y)) >= 0.5214) == pytest.approx(share, abs=1.5)


# A small book, built strictly


def build(folder: Path, page: str) -> subprocess.CompletedProcess[str]:
    """Builds a two-page book with plain Sphinx: an index with `page` in it, and one executed notebook."""
    source = folder / "source"
    (source / "book" / "notebooks").mkdir(parents=True, exist_ok=True)
    store = source / "book" / "results" / "quick" / "values"
    store.mkdir(parents=True, exist_ok=True)
    (store / "01.json").write_text(json.dumps({"uniform/total": entry(notebook="01-first")}))
    (source / "book" / "notebooks" / "01-first.ipynb").write_text(json.dumps(executed_notebook()))
    (source / "index.md").write_text(f"# Book\n\n{page}\n\n```{{toctree}}\nbook/notebooks/01-first\n```\n")
    (source / "conf.py").write_text(
        "extensions = ['myst_nb', 'igsp_book.extension']\nnb_execution_mode = 'off'\nroot_doc = 'index'\n"
        "html_theme = 'basic'\nexclude_patterns = ['book/results']\n")
    command = [sys.executable, "-m", "sphinx", "-b", "dirhtml", "-W", "-n", "--keep-going", "-q",
               "-d", str(folder / "doctrees"), str(source), str(folder / "out")]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose output already holds a MathJax script, so that a build needs no pinned wheel."""
    script = tmp_path / "out" / "_static" / "mathjax" / "tex-mml-chtml.js"
    script.parent.mkdir(parents=True)
    script.write_text("// placeholder\n")
    return tmp_path


def test_a_strict_build_shows_numbers_panel_and_provenance(folder: Path) -> None:
    run = build(folder, "Kept: {result}`uniform/total:interval` at {profile}`shown`.")
    assert run.returncode == 0, run.stderr
    index = (folder / "out" / "index.html").read_text(encoding="utf8")
    assert "58.8\N{NO-BREAK SPACE}% (57.1 to 60.2)" in index
    link = re.search(r'igsp-number[^"]*" href="book/notebooks/01-first/#([\w-]+)" title="([^"]+)"', index)
    assert link and "n = 3" in link[2] and "57.1 to 60.2" in link[2]
    page = (folder / "out" / "book" / "notebooks" / "01-first" / "index.html").read_text(encoding="utf8")
    assert f'alt="{ALT}"' in page and "The mix keeps most." in page
    row = page[page.index(f'id="{link[1]}"') :].partition("</tr>")[0]
    assert "57.1 to 60.2" in row and "uniform/total" in row, "the number links to its row"
    for part in ("igsp-panel", "igsp-provenance", "uncommitted changes", "1\N{NO-BREAK SPACE}min", "-p sparsity"):
        assert part in page
    assert "injected" not in page and page.count("The mix keeps most.") == 1


def test_a_page_shows_what_a_notebook_made(folder: Path) -> None:
    run = build(folder, "```{shown} 01-first fig-kept\n```")
    assert run.returncode == 0, run.stderr
    index = (folder / "out" / "index.html").read_text(encoding="utf8")
    assert f'alt="{ALT}"' in index and "The mix keeps most." in index and 'id="fig-kept"' in index
    assert 'href="book/notebooks/01-first/"' in index, "with a link to where it was made"


def test_what_is_not_published_fails_the_build(folder: Path) -> None:
    wrong = {
        "{result}`uniform/totl`": "did you mean uniform/total", "{result}`uniform/total:p`": "has no p",
        "{verdict}`no-such-claim`": "unknown claim 'no-such-claim'",
        "```{shown} 01-first fig-kep\n```": "did you mean fig-kept",
        "```{shown} 02-none fig-kept\n```": "unknown notebook '02-none'",
    }
    run = build(folder, "\n\n".join(wrong))
    assert run.returncode != 0
    assert [words for words in wrong.values() if words not in run.stderr] == []


def test_a_preview_marks_what_it_has_not_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGSP_PREVIEW", "1")
    run = build(folder, "{result}`other/total` {verdict}`" + ledger.claims()[0].id + "`")
    assert run.returncode == 0, run.stderr
    index = (folder / "out" / "index.html").read_text(encoding="utf8")
    assert 'title="other/total: not executed in this build' in index and index.count("not executed in this build") >= 2
    run = build(folder, "{result}`small/total`")
    assert run.returncode != 0 and "small/total" in run.stderr, "the records are always there"


def test_missing_notebooks_are_named_before_the_build(folder: Path) -> None:
    (folder / "source").mkdir()
    (folder / "source" / "_toc.yml").write_text("chapters:\n  - file: book/notebooks/09-none\n")
    run = build(folder, "Text.")
    assert run.returncode != 0 and "book/notebooks/09-none.ipynb" in run.stderr and "igsp notebooks run" in run.stderr


def test_trials_that_are_none_are_refused() -> None:
    with pytest.raises(AssetError, match="no advice"):
        mixtures.measured([{}])
