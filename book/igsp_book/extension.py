"""Sphinx extension of the book: published numbers, claim ledger, executed notebooks, a site without foreign requests.

Configuration (in `_config.yml` under `sphinx: config:`):

    igsp_profile     profile whose results are shown; the environment variable IGSP_PROFILE overrides it
    igsp_results     folder of the published results, relative to the book's root
    igsp_repository  https://github.com/owner/name for the links to Colab and Binder; empty = no links
    igsp_branch      branch those links point to

The environment variable IGSP_PREVIEW makes a preview: notebooks may stand there unexecuted, and what they would have
published shows as a marked placeholder instead of failing the build.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging

from igsp_book import executed, quiz, reference, runs, site
from igsp_book.base import NOTEBOOKS, ProfileRole, ResultRole, VerdictRole
from igsp_book.shown import Shown

logger = logging.getLogger(__name__)

ROLES = {"result": ResultRole, "verdict": VerdictRole, "profile": ProfileRole}
DIRECTIVES = {
    "shown": Shown, "notebook-panel": runs.NotebookPanel, "notebook-provenance": runs.NotebookProvenance,
    "execution-statistics": runs.ExecutionStatistics, "cli-reference": reference.CliReference,
    "quiz": quiz.Quiz, "exercises": quiz.Exercises, "course-file": quiz.CourseFile,
}


def _read_environment(app: Sphinx, config: Config) -> None:
    config.igsp_profile = os.environ.get("IGSP_PROFILE") or config.igsp_profile
    config.igsp_preview = bool(os.environ.get("IGSP_PREVIEW"))
    if config.igsp_preview:
        config.suppress_warnings = [*config.suppress_warnings, "ref.numref"]  # figures that were not drawn
    toc = Path(app.srcdir) / "_toc.yml"
    named = re.findall(rf"file: *({NOTEBOOKS}/\S+)", toc.read_text(encoding="utf8")) if toc.exists() else []
    missing = sorted(name for name in named if not (Path(app.srcdir) / f"{name}.ipynb").exists())
    if missing:
        raise ExtensionError(
            f"{len(missing)} executed notebooks are missing, the first is {missing[0]}.ipynb: run "
            f"`igsp notebooks run --profile {config.igsp_profile}` before the book is built"
        )


def _read_notebook(app: Sphinx, docname: str, content: list[str]) -> None:
    path = app.env.doc2path(docname)
    if not path.endswith(".ipynb"):
        return
    notebook = json.loads(content[0])
    if not app.config.igsp_preview or "igsp" in notebook["metadata"]:
        for problem in executed.problems(notebook, app.config.igsp_profile):
            logger.warning(f"{docname} {problem}", location=docname, type="igsp")
    content[0] = json.dumps(executed.prepare(notebook, Path(docname).name.partition("-")[0]))


def _read_again(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    return [name for name, about in env.metadata.items() if about.get("igsp_reads_results") and name in env.found_docs]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("igsp_profile", "quick", "env")
    app.add_config_value("igsp_preview", False, "env")
    app.add_config_value("igsp_results", "book/results", "env")
    app.add_config_value("igsp_repository", "", "env")
    app.add_config_value("igsp_branch", "main", "env")
    for name, role in ROLES.items():
        app.add_role(name, role())
    for name, directive in DIRECTIVES.items():
        app.add_directive(name, directive)
    app.connect("config-inited", _read_environment, priority=100)
    app.connect("builder-inited", site.write_static)
    app.connect("builder-inited", quiz.write_course)
    app.connect("source-read", _read_notebook)
    app.connect("env-get-outdated", _read_again)
    app.connect("doctree-read", site.keep_units)
    app.connect("html-page-context", site.clean_page, priority=900)
    app.connect("html-collect-pages", site.lost_page)
    app.connect("build-finished", site.tidy_pages)
    app.connect("build-finished", site.write_indexes)
    app.connect("build-finished", site.write_claims)
    app.add_css_file("palette.css")
    app.add_css_file("igsp.css")
    app.add_js_file("igsp.js", loading_method="defer")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
