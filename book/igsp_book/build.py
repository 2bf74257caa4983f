"""Builds of the book: strictly from executed notebooks, as a preview from the committed records, and as an archive."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat

from igsp import __version__
from igsp.assets import whole_or_nothing
from igsp.errors import IgspError, UsageError
from igsp_book import course, notebooks

PREVIEW = {"IGSP_PREVIEW": "1"}  # settings of the build; see the package's docstring
UNEXECUTED = """:::{important}
Not executed in this build, which shows the prose and the code alone. `make book` runs it.
:::"""


def site(root: Path, profile: str, out: Path | None = None, settings: Mapping[str, str] | None = None) -> Path:
    """Builds the book of a checkout, a warning being an error; returns its folder, `out/_build/html`.

    Args:
        root: the checkout; its notebooks were executed.
        profile: whose values the book shows.
        out: default `root`.
        settings: further environment variables of the build.

    Raises:
        IgspError: the build failed.
    """
    html = (out or root) / "_build" / "html"
    shutil.rmtree(html, ignore_errors=True)
    program = str(Path(sys.executable).with_name("jupyter-book"))
    command = [program, "build", str(root), "--path-output", str(out or root), "-W", "-n", "--keep-going", "-q"]
    run = subprocess.run(command, cwd=root, env={**os.environ, "IGSP_PROFILE": profile, **(settings or {})})
    if run.returncode or not (html / "index.html").exists():
        raise IgspError("the book did not build: see the warnings above")
    return html


def preview(root: Path, out: Path, profile: str = "quick") -> Path:
    """The whole book out of what the repository holds, in the folder `out`; needs neither a model nor data."""
    with tempfile.TemporaryDirectory(prefix="igsp-preview-") as folder:
        stage(root, Path(folder), profile)
        html = site(Path(folder), profile, settings=PREVIEW)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(html, out)
    return out


def stage(root: Path, copy: Path, profile: str = "quick") -> None:
    """Copies what a preview is built from into the empty folder `copy`.

    Notebooks that read committed records are executed there. The others appear with their prose and code, and what
    they would publish as a marked placeholder.
    """
    left_out = shutil.ignore_patterns("notebooks", "locks", "values", profile, ".ipynb_checkpoints")
    for name in ("book", "notebooks"):
        shutil.copytree(root / name, copy / name, ignore=left_out)
    for name in ("_config.yml", "_toc.yml", "requirements.lock", "LICENSE"):
        shutil.copyfile(root / name, copy / name)
    found = notebooks.notebooks(copy)
    notebooks.run(profile, only=[notebook.name for notebook in found if notebook.reads], root=copy)
    for notebook in found:
        if not notebook.reads:
            _copy_unexecuted(notebook, copy / "book" / "notebooks")


def _copy_unexecuted(notebook: notebooks.Notebook, folder: Path) -> None:
    node = nbformat.read(notebook.source.with_suffix(".ipynb"), as_version=4)
    node.metadata.pop("igsp", None)
    node.cells.insert(1, nbformat.v4.new_markdown_cell(UNEXECUTED, id="unexecuted"))
    nbformat.write(node, folder / f"{notebook.name}.ipynb")


def archive(root: Path, out: Path, profile: str = "quick") -> Path:
    """Packs the built site, the executed notebooks, the published values and the licence into one zip file of `out`.

    Its bytes depend on names and contents alone. Beside it lies `<name>.sha256`, as `sha256sum --check` reads it.

    Raises:
        UsageError: one of these parts is missing.
    """
    book, name = root / "book", f"igsp-book-{__version__}"
    parts = {"html": root / "_build" / "html", "notebooks": book / "notebooks", "LICENSE": root / "LICENSE",
             "values": book / "results" / profile / "values", "CITATION.cff": root / "CITATION.cff"}
    files: dict[str, bytes] = {}
    for part, path in parts.items():
        inside = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        if not inside:
            raise UsageError(f"there is nothing in {path}: run `make book` before the archive is made")
        files |= {(Path(name) / part / file.relative_to(path)).as_posix(): file.read_bytes() for file in inside}
    content = course.pack(files)
    digest = hashlib.sha256(content).hexdigest()
    for target, data in ((f"{name}.zip", content), (f"{name}.zip.sha256", f"{digest}  {name}.zip\n".encode())):
        with whole_or_nothing(out / target) as temporary:
            temporary.write_bytes(data)
    return out / f"{name}.zip"
