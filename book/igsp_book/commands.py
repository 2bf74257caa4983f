"""The commands of the book: notebooks, the site, the course."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from igsp.cli import common as c
from igsp.cli.study import Parameters
from igsp.cli.study import parameters as parsed
from igsp.errors import IgspError
from igsp.provenance import repository_root
from igsp_book import build, notebooks
from igsp_book import course as lessons

app = typer.Typer()
of_notebooks = typer.Typer(help="run, pair and check the notebooks")
book = typer.Typer(help="the static book")
course = typer.Typer(help="exercises, and the packs for a class")
for name, group in {"notebooks": of_notebooks, "book": book, "course": course}.items():
    app.add_typer(group, name=name)

Exercise = Annotated[str, Argument(help="id, as ex05")]
Own = Annotated[Path | None, Argument(help="your file (default: the name of the exercise, here)")]


@c.command(of_notebooks, "igsp notebooks run 03 -p method wanda", name="run")
def notebooks_run(
    names: Annotated[list[str] | None, Argument(help="notebooks to run, by name or number (default all)")] = None,
    profile: c.Profile = "quick", parameter: Parameters = None,
    jobs: Annotated[int, Option(min=1, help="notebooks at a time")] = 2,
    out: Annotated[Path | None, Option(help="folder of the executed copies (default book/notebooks)")] = None,
    force: Annotated[bool, Option("--force", help="run again even where nothing has changed")] = False,
) -> None:
    """execute the notebooks with papermill, resumable"""
    notebooks.run(profile, parsed(parameter), names or None, jobs, out, force=force)


@c.command(of_notebooks, "igsp notebooks sync", name="sync")
def notebooks_sync() -> None:
    """write every .ipynb anew from its .py"""
    for path in notebooks.sync(notebooks.notebooks()):
        print(path)


@c.command(of_notebooks, "igsp notebooks check", name="check")
def notebooks_check() -> None:
    """pairs in step, executed copies finished without error"""
    found = notebooks.notebooks()
    bad = [f"{name}: .ipynb and .py differ, run `igsp notebooks sync`" for name in notebooks.out_of_sync(found)]
    for notebook in found:
        bad += notebooks.problems(repository_root() / "book" / "notebooks" / f"{notebook.name}.ipynb")
    if bad:
        raise IgspError("\n".join(bad))
    print(f"{len(found)} notebooks: pairs in step, executed copies finished without error")


@c.command(book, "igsp book build --profile small", name="build")
def book_build(profile: c.Profile = "quick") -> None:
    """check the executed notebooks and build the book, strictly"""
    notebooks_check()
    print(f"book: {(build.site(repository_root(), profile) / 'index.html').as_uri()}")


@c.command(book, "igsp book preview", name="preview")
def book_preview() -> None:
    """build the book from the committed records alone, without a model"""
    root = repository_root()
    print(f"preview: {(build.preview(root, root / '_build' / 'preview') / 'index.html').as_uri()}")


@c.command(book, "igsp book archive", name="archive")
def book_archive(profile: c.Profile = "quick") -> None:
    """pack site, executed notebooks and values, with a checksum"""
    root = repository_root()
    print(build.archive(root, root / "_build" / "release", profile))


@c.command(app, "igsp check ex05")
def check(exercise: Exercise, path: Own = None) -> int:
    """check your solution of an exercise"""
    chosen = lessons.exercise(exercise)
    problem = lessons.check(chosen, path or Path(chosen.name))
    print(f"{chosen.id}: {f'not yet. {problem}' if problem else 'pass'}")
    return 1 if problem else 0


@c.command(course, "igsp course list", name="list")
def course_list(json_wanted: c.Json = False) -> None:
    """the exercises with their rating and page"""
    columns = ("id", "stars", "title", "page")
    c.table([{k: getattr(e, k) for k in columns} for e in lessons.exercises().values()], json_wanted)


@c.command(course, "igsp course start ex05", name="start")
def course_start(exercise: Exercise, path: Own = None) -> None:
    """write the file of an exercise to begin with"""
    chosen = lessons.exercise(exercise)
    print(lessons.start(chosen, path or Path(chosen.name)))


@c.command(course, "igsp course build", name="build")
def course_build(
    out: Annotated[Path | None, Option(help="folder to write to (default _build/course)")] = None,
) -> None:
    """write the students' and the instructors' pack"""
    for path in lessons.build(out or repository_root() / "_build" / "course"):
        print(path)
