"""Directives that speak of executed notebooks: the panel, the provenance footer, the statistics of all runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.environment import BuildEnvironment

from igsp.study.values import interval, p_text
from igsp_book import executed
from igsp_book.base import NOTEBOOKS, BookDirective, anchor, page_link, published
from igsp_book.tables import Cell, badge, code, definitions, folded, table


def all_runs(env: BuildEnvironment) -> list[executed.Run]:
    """The runs behind the notebook pages of the book, in page order."""
    env.metadata[env.docname]["igsp_reads_results"] = True
    names = sorted(name for name in env.found_docs if name.startswith(f"{NOTEBOOKS}/"))
    found = (executed.read_run(Path(env.doc2path(name)), name) for name in names)
    return [run for run in found if run is not None]


class NotebookDirective(BookDirective):
    """Base of the directives that speak of the notebook they stand in."""

    def this_run(self) -> executed.Run | None:
        return executed.read_run(Path(self.env.doc2path(self.env.docname)), self.env.docname)


class NotebookPanel(NotebookDirective):
    """Profile badge, parameters of this run, the command that repeats it, and links to run it elsewhere."""

    def build(self) -> list[nodes.Node]:
        run = self.this_run()
        if run is None:
            return []
        about = run.about
        head = nodes.paragraph("", "", badge(f"profile {about['profile']}", "profile"),
                               nodes.Text(f" executed in {executed.duration(run.seconds)} on {about.get('device')}. "))
        for link in self._links(about):
            head += [link, nodes.Text(" ")]
        panel = nodes.container("", head, classes=["igsp-panel"])
        if about.get("parameters"):
            rows = [[code(p["name"]), p.get("type") or "", setting(p.get("default")), setting(p.get("value")),
                     p.get("help") or ""] for p in about["parameters"]]
            headings = ["Parameter", "Type", "Default", "This run", "Meaning"]
            panel += table(headings, rows)
        panel += nodes.paragraph("", "Run it again, with all that it needs or alone:")
        commands = f"{executed.runner_command(about)}\n{executed.papermill_command(about)}"
        panel += nodes.literal_block("", commands, language="text")
        return [panel]

    def _links(self, about: Mapping[str, Any]) -> list[nodes.Node]:
        source = str(about.get("source", "")).removesuffix(".py") + ".ipynb"
        return [nodes.reference("", title, refuri=url) for title, url in launch_links(self.config, source)]


def setting(value: Any) -> nodes.Node:
    """A parameter's value; None stands for the value of the profile."""
    return nodes.Text("from the profile") if value is None else code(str(value))


def launch_links(config: Any, source: str) -> list[tuple[str, str]]:
    """Titles and addresses of the places that can run `source`; none while no repository is configured."""
    repository = config.igsp_repository.rstrip("/").removeprefix("https://github.com/")
    if not repository:
        return []
    branch = config.igsp_branch
    return [
        ("Open in Colab", f"https://colab.research.google.com/github/{repository}/blob/{branch}/{source}"),
        ("Open in Binder", f"https://mybinder.org/v2/gh/{repository}/{branch}?labpath={source}"),
    ]


class NotebookProvenance(NotebookDirective):
    """What made this page: code, model, data, device, seed, versions and time."""

    def build(self) -> list[nodes.Node]:
        run = self.this_run()
        if run is None:
            return []
        return [*self._values(run), nodes.rubric("", "Provenance"), definitions(self._items(run), "igsp-provenance")]

    def _values(self, run: executed.Run) -> list[nodes.Node]:
        """Every number that this notebook published, a row each: the numbers of the prose link to them."""
        values = {key: value for key, value in published(self.env).items() if value.notebook == run.stem}
        rows: list[list[Cell]] = [
            [nodes.inline("", "", code(key), ids=[anchor(key)]), f"{interval(value)} {value.label or ''}",
             *("" if x is None else str(x) for x in (value.n, value.draws)),
             *("" if p is None else p_text(p) for p in (value.p, value.p_holm))]
            for key, value in sorted(values.items())
        ]
        headings = ["Key", "Value, 95 % interval", "n", "Draws", "p", "p (Holm)"]
        caption = f"What this notebook published, profile {self.config.igsp_profile}."
        shown = table(headings, rows, caption, "igsp-dense igsp-values")
        return folded(f"The {len(rows)} numbers of this page", shown) if rows else []

    def _items(self, run: executed.Run) -> list[tuple[str, Cell]]:
        about, model = run.about, run.about.get("model") or {}
        commit: list[nodes.Node] = [code(str(about.get("commit") or "unknown"))]
        if about.get("dirty"):
            commit += [nodes.Text(" "), badge("uncommitted changes", "stale")]
        versions = ", ".join(f"{name} {version}" for name, version in (about.get("versions") or {}).items())
        return [
            ("Source", code(str(about.get("source")))), ("Commit", commit),
            ("Package source", short(about.get("package"))), ("Lock file", short(about.get("lock"))),
            ("Model", [nodes.Text(f"{model['name']} "), short(model["fingerprint"])] if model else "none needed"),
            ("Data", short(about.get("data"))),
            ("Device", ", ".join(str(about[name]) for name in ("device", "processor", "dtype") if about.get(name))),
            ("Seed", str(about.get("seed"))),
            ("Started", executed.moment(about.get("started"))), ("Run time", executed.duration(run.seconds)),
            ("Versions", versions or "unknown"),
        ]


def short(sha: str | None) -> nodes.Node:
    """The first 12 digits of a hash, the whole of it on hover."""
    if not sha:
        return nodes.Text("unknown")
    return nodes.abbreviation("", "", code(sha[:12]), explanation=sha)


class ExecutionStatistics(BookDirective):
    """One row per notebook: time, cells, device."""

    def build(self) -> list[nodes.Node]:
        found = all_runs(self.env)
        if not found:
            return [nodes.paragraph("", "This build holds no executed notebook.")]
        rows: list[list[Cell]] = []
        for run in found:
            rows.append([page_link(self.env, run.docname, nodes.Text(run.title)),
                         executed.duration(run.seconds), str(run.cells), str(run.about.get("device")),
                         executed.moment(run.about.get("started"))])
        total = executed.duration(sum(run.seconds for run in found))
        rows.append(["All notebooks", total, str(sum(run.cells for run in found)), "", ""])
        return [table(["Notebook", "Run time", "Code cells", "Device", "Started"], rows,
                      f"The runs behind this book, profile {self.config.igsp_profile}.", "igsp-dense igsp-stack")]
