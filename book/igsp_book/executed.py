"""Executed notebooks as the book reads them: checked, figures given their computed alt text, panel and footer added.

Everything here works on the notebook's JSON in memory; the file that a reader downloads stays as it was executed.
"""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from igsp.study.values import NBSP

PARAMETER_TAGS = {"parameters", "injected-parameters"}
SHORTEST_ALT = 20  # characters; anything shorter says nothing about a figure

Notebook = dict[str, Any]


def problems(notebook: Mapping[str, Any], profile: str) -> Iterator[str]:
    """What keeps an executed notebook out of the book, one sentence each; nothing if it may go in."""
    about = notebook["metadata"].get("igsp")
    if about is None:
        yield "carries no metadata of a run: execute it with `igsp notebooks run`"
    elif about.get("profile") != profile:
        yield f"was executed at profile '{about.get('profile')}', this book shows '{profile}'"
    run = notebook["metadata"].get("papermill", {})
    if run.get("exception") or (run and not run.get("end_time")):
        yield "was not executed to its end: run it again"
    for index, cell in enumerate(notebook["cells"], start=1):
        tags = cell.get("metadata", {}).get("tags", [])
        if "papermill-error-cell-tag" in tags or any(o["output_type"] == "error" for o in cell.get("outputs", [])):
            yield f"holds an error in cell {index}: run it again"
        for output in _figures(cell):
            if len(output["metadata"]["igsp"]["alt"]) < SHORTEST_ALT:
                yield f"has a figure in cell {index} with an alt text under {SHORTEST_ALT} characters"
        if len(_pictures(cell)) > len(_figures(cell)):
            yield f"has an image without alt text in cell {index}: draw it with `igsp.figures.show`"


def prepare(notebook: Mapping[str, Any], number: str = "") -> Notebook:
    """A copy of an executed notebook for the book.

    Its `number`, by which other pages cite it, leads the title. Raw parameter cells are hidden, every figure becomes a
    cell of its own that carries alt text and caption, the parameter panel follows the title cell, and the provenance
    footer comes last.
    """
    result = copy.deepcopy(dict(notebook))
    cells: list[dict[str, Any]] = []
    for cell in result["cells"]:
        if PARAMETER_TAGS & set(cell.get("metadata", {}).get("tags", [])):
            continue
        cells.extend(_split(cell))
    if cells:
        if number.isdigit():
            cells[0]["source"] = "".join(cells[0]["source"]).replace("# ", f"# Notebook {int(number)}: ", 1)
        cells.insert(1, _markdown("notebook-panel"))
        cells.append(_markdown("notebook-provenance"))
    result["cells"] = cells
    return result


def _markdown(directive: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": directive, "metadata": {}, "source": f"```{{{directive}}}\n```"}


def _pictures(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [o for o in cell.get("outputs", []) if any(mime.startswith("image/") for mime in o.get("data", {}))]


def _about(output: Mapping[str, Any]) -> dict[str, Any]:
    return output.get("metadata", {}).get("igsp", {})


def _figures(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [output for output in _pictures(cell) if "alt" in _about(output)]


def _split(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """The cell without its figures, then one input-less cell per figure; captions move into the figures."""
    figures = _figures(cell)
    if not figures:
        return [cell]
    rest = [o for o in cell["outputs"] if not any(o is f for f in figures) and "caption_of" not in _about(o)]
    return [{**cell, "outputs": rest}, *(_figure_cell(cell, output, k) for k, output in enumerate(figures))]


def _figure_cell(cell: Mapping[str, Any], output: dict[str, Any], index: int) -> dict[str, Any]:
    about = _about(output)
    figure = {"caption": about.get("caption", ""), "classes": "igsp-figure"}
    if about.get("name"):
        figure["name"] = about["name"]
    return {
        "cell_type": "code", "id": f"{cell.get('id', 'cell')}-figure-{index}", "outputs": [output],
        "source": "# figure", "execution_count": cell.get("execution_count"),  # a cell without source is left out
        "metadata": {"tags": ["remove-input"], "mystnb": {"image": {"alt": about["alt"]}, "figure": figure}},
    }


@dataclass(frozen=True)
class Run:
    """What an executed notebook says of itself (`nb.metadata["igsp"]`), with `docname` for links."""

    docname: str
    title: str
    about: Mapping[str, Any]
    cells: int

    @property
    def stem(self) -> str:
        return str(self.about.get("notebook") or Path(self.docname).name)

    @property
    def seconds(self) -> float:
        return float(self.about.get("seconds") or 0.0)


def read_run(path: Path, docname: str) -> Run | None:
    """The run behind an executed notebook file, None if it carries none."""
    notebook = json.loads(path.read_text(encoding="utf8"))
    about = notebook["metadata"].get("igsp")
    if about is None:
        return None
    code = sum(cell["cell_type"] == "code" for cell in notebook["cells"])
    return Run(docname, _title(notebook) or Path(docname).name, about, code)


def _title(notebook: Mapping[str, Any]) -> str | None:
    for cell in notebook["cells"]:
        for line in "".join(cell["source"]).splitlines() if cell["cell_type"] == "markdown" else ():
            if line.startswith("# "):
                return line[2:].strip()
    return None


def changed(about: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a run that were given to it (not resolved from the notebook's source or the profile)."""
    parameters = about.get("parameters", [])
    return {p["name"]: p["value"] for p in parameters if p.get("given", p.get("value") != p.get("default"))}


def runner_command(about: Mapping[str, Any]) -> str:
    """The `igsp` command that repeats this run."""
    extra = {name: value for name, value in changed(about).items() if name != "profile"}
    options = [f"-p {name} {shlex.quote(_plain(value))}" for name, value in extra.items()]
    name = about.get("notebook", "")
    return " ".join([f"igsp notebooks run {name} --profile {about.get('profile', 'quick')}", *options])


def papermill_command(about: Mapping[str, Any]) -> str:
    """The stock papermill command that repeats this notebook alone."""
    source = str(about.get("source", "")).removesuffix(".py") + ".ipynb"
    options = [f"-p {name} {shlex.quote(_plain(value))}" for name, value in changed(about).items()]
    return " ".join(["papermill -k python3", source, f"out-{Path(source).name}", *options])


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def duration(seconds: float) -> str:
    """Seconds for a reader: `4.2 s`, `3 min 20 s`, `1 h 05 min`; the spaces do not break."""
    if seconds < 60:
        text = f"{seconds:.1f} s"
    else:
        minutes, rest = divmod(round(seconds), 60)
        text = f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
    return text.replace(" ", NBSP)


def moment(iso: str | None) -> str:
    """An ISO time stamp to the minute, unchanged in meaning; `unknown` if there is none."""
    if not iso:
        return "unknown"
    stamp = datetime.fromisoformat(iso)
    return stamp.strftime("%Y-%m-%d %H:%M") + (" UTC" if stamp.utcoffset() == timedelta(0) else "")
