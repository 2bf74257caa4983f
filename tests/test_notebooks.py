"""The runner: refuses early, runs in order of need, resumes after a kill, writes whole files only."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import jupytext
import nbformat
import pytest
from igsp_book import facts, notebooks

from igsp.errors import IgspError, UnknownName, UsageError
from igsp.provenance import repository_root

ROOT = repository_root()
FACTS = {
    "profile": "quick",
    "package": "p",
    "lock": "l",
    "model": "m",
    "data": "d",
    "device": "cpu",
    "dtype": "float32",
}


HEADER = """\
# ---
# jupyter:
#   igsp:
#     needs: [{needs}]
#   kernelspec:
#     name: python3
#     display_name: Python 3
#     language: python
# ---

# %% [markdown]
# # Title

# %%
from typing import Optional

# %% tags=["parameters"]
profile: str = "quick"  # scale
sparsity: Optional[float] = None  # share of zeros
label: str = "x"  # any text

# %%
"""


def write(folder, name, body, needs=""):
    (folder / f"{name}.py").write_text(HEADER.format(needs=needs) + textwrap.dedent(body))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small checkout with three notebooks: 02 needs 01, 03 stands alone."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (tmp_path / "_toc.yml").write_text("")
    (folder / "jupytext.toml").write_text((ROOT / "notebooks" / "jupytext.toml").read_text())
    write(folder, "01-first", "import pathlib\npathlib.Path('one').write_text(label)\n")
    write(folder, "02-second", "import pathlib\nprint(pathlib.Path('one').read_text(), sparsity)\n", needs="01-first")
    write(folder, "03-third", "print('alone')\n")
    notebooks.sync(notebooks.notebooks(tmp_path))
    monkeypatch.setattr(facts, "common", lambda *_: dict(FACTS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(checkout, **options):
    lines = []
    notebooks.run(root=checkout, say=lines.append, **options)
    return lines


def test_runs_in_order_resolves_parameters_and_skips_what_is_up_to_date(checkout):
    lines = said(checkout, parameters={"sparsity": 0.5, "label": "hello"})
    assert lines.index("02-second: started") > next(i for i, x in enumerate(lines) if x.startswith("01-first: done"))
    executed = nbformat.read(checkout / "book" / "notebooks" / "02-second.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "hello 0.5\n"
    panel = {p["name"]: p for p in executed.metadata["igsp"]["parameters"]}
    assert panel["sparsity"] == {
        "name": "sparsity",
        "type": "Optional[float]",
        "default": None,
        "value": 0.5,
        "help": "share of zeros",
        "given": True,
    }
    assert str(checkout) not in (checkout / "book" / "notebooks" / "02-second.ipynb").read_text()
    again = said(checkout, parameters={"sparsity": 0.5, "label": "hello"})
    assert again == [f"{n}: up to date" for n in ("01-first", "02-second", "03-third")]
    assert "03-third: up to date" not in said(checkout, parameters={"sparsity": 0.4})


def test_none_means_the_profiles_value(checkout):
    said(checkout, only=["1"])
    executed = nbformat.read(checkout / "book" / "notebooks" / "01-first.ipynb", as_version=4)
    assert {p["name"]: p["value"] for p in executed.metadata["igsp"]["parameters"]}["sparsity"] == 0.6


@pytest.mark.parametrize(
    "parameters, error, message",
    [
        ({"sparsty": 0.5}, UnknownName, "sparsity"),
        ({"sparsity": "much"}, UsageError, r"must be Optional\[float\]"),
        ({"sparsity": 1.0}, UsageError, "sparsity must be less than 1"),
        ({"label": 3}, UsageError, "must be str"),
        ({"label": True}, UsageError, "must be str"),
    ],
)
def test_bad_parameters_are_refused_before_anything_runs(checkout, parameters, error, message):
    with pytest.raises(error, match=message):
        said(checkout, parameters=parameters)
    assert not (checkout / "book").exists()


def test_unknown_notebook_and_unknown_profile(checkout):
    with pytest.raises(UnknownName, match="02-second"):
        said(checkout, only=["02-secnd"])
    with pytest.raises(UnknownName, match="quick"):
        said(checkout, profile="quik")


def test_an_edited_source_without_its_twin_is_refused(checkout):
    source = checkout / "notebooks" / "03-third.py"
    source.write_text(source.read_text().replace("alone", "edited"))
    with pytest.raises(UsageError, match="igsp notebooks sync"):
        said(checkout)
    notebooks.sync(notebooks.notebooks(checkout))
    said(checkout, only=["3"])


def test_outputs_in_a_paired_notebook_count_as_out_of_step(checkout):
    pair = checkout / "notebooks" / "03-third.ipynb"
    node = nbformat.read(pair, as_version=4)
    node.cells[-1].outputs = [nbformat.v4.new_output("stream", text="left over")]
    nbformat.write(node, pair)
    assert notebooks.out_of_sync(notebooks.notebooks(checkout)) == ["03-third"]


def test_a_failing_cell_is_named_the_rest_finishes_and_nothing_half_is_left(checkout):
    write(checkout / "notebooks", "01-first", "raise ValueError('no such luck')\n")
    notebooks.sync(notebooks.notebooks(checkout))
    with pytest.raises(IgspError, match="no such luck"):
        said(checkout)
    assert [p.name for p in (checkout / "book" / "notebooks").iterdir()] == ["03-third.ipynb"]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda n: n.metadata.papermill.update(end_time=None), "did not finish"),
        (lambda n: n.cells[-1].metadata.papermill.update(status="running"), "not completed"),
        (
            lambda n: n.cells[-1].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])),
            "holds an error",
        ),
    ],
)
def test_the_gate_sees_unfinished_and_failed_copies(checkout, spoil, message):
    said(checkout, only=["3"])
    path = checkout / "book" / "notebooks" / "03-third.ipynb"
    assert notebooks.problems(path) == []
    node = nbformat.read(path, as_version=4)
    spoil(node)
    nbformat.write(node, path)
    assert any(message in p for p in notebooks.problems(path))
    assert "not executed yet" in notebooks.problems(path.with_name("09-none.ipynb"))[0]


def test_a_killed_run_resumes_and_loses_nothing_finished(checkout):
    write(
        checkout / "notebooks",
        "02-second",
        "import time\nopen('slow', 'w').close()\ntime.sleep(0.0 if label == 'fast' else 60)\n",
        needs="01-first",
    )
    notebooks.sync(notebooks.notebooks(checkout))
    script = (
        "from igsp_book import facts, notebooks; from pathlib import Path\n"
        f"facts.common = lambda *_: {FACTS!r}\n"
        f"notebooks.run(root=Path({str(checkout)!r}))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=checkout, start_new_session=True, stdout=subprocess.DEVNULL
    )
    deadline = time.time() + 60
    while not (checkout / "notebooks" / "slow").exists():
        assert time.time() < deadline and child.poll() is None
        time.sleep(0.2)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    done = sorted(p.name for p in (checkout / "book" / "notebooks").iterdir())
    assert "01-first.ipynb" in done and "02-second.ipynb" not in done
    write(checkout / "notebooks", "02-second", "print('quick now')\n", needs="01-first")
    notebooks.sync(notebooks.notebooks(checkout))
    lines = said(checkout)
    assert "01-first: up to date" in lines and any(x.startswith("02-second: done") for x in lines)


def test_the_projects_own_pairs_are_in_step():
    assert notebooks.out_of_sync(notebooks.notebooks(ROOT)) == []


def test_every_notebook_has_one_title_and_documented_typed_parameters():
    for notebook in notebooks.notebooks(ROOT):
        node = jupytext.read(notebook.source)
        titles = [
            line
            for c in node.cells
            if c.cell_type == "markdown"
            for line in c.source.splitlines()
            if line.startswith("# ")
        ]
        assert len(titles) == 1 and node.cells[0].source.startswith("# "), notebook.name
        for parameter in notebook.parameters():
            assert parameter.help and parameter.type != "None", (notebook.name, parameter.name)
