"""The course: exercises cut out of their solutions, the check of a learner's file, and the packs for a class.

An exercise is one file `book/exercises/exNN_name.py`. Its docstring holds id, rating, title, page and task; what stands
between `# BEGIN: hint` and `# END` is the solution; what follows `# CHECK` is the check. The learner's file is the same
text without the solutions, so the two cannot drift apart.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from igsp.assets import whole_or_nothing
from igsp.errors import IgspError, UnknownName, UsageError
from igsp.provenance import repository_root

HEAD = re.compile(r'"""(ex\d\d) (★{1,3}) ([^\n]+)\n\nPage: (\S+)\n\n(.+?)\n"""\n', re.DOTALL)
REGION = re.compile(r"^( *)# BEGIN: ([^\n]+)\n(.*?)^ *# END\n", re.DOTALL | re.MULTILINE)
CHECK = "\n# CHECK\n"
SECONDS = 60.0  # after which a learner's file is stopped
TITLE = "Calibration data and what pruning keeps"
GUIDE = ("course", "exercises", "course-1", "course-2", "course-3", "course-4")
STUDENTS, INSTRUCTORS = "igsp-course-students.zip", "igsp-course-instructors.zip"


@dataclass(frozen=True)
class Exercise:
    """One exercise: one to three stars, `page` of the book it belongs to, task in Markdown, whole file as `source`."""

    id: str
    stars: str
    title: str
    page: str
    task: str
    name: str
    source: str


def folder() -> Path:
    """`book/exercises` of the checkout, or the folder `exercises` of an unpacked students' pack."""
    places = [repository_root() / "book" / "exercises", Path("exercises"), Path()]
    found = next((place for place in places if list(place.glob("ex*_*.py"))), None)
    if found is None:
        raise UsageError("no exercises here: go to a checkout of the book or to the unpacked students' pack")
    return found


def exercises(root: Path | None = None) -> dict[str, Exercise]:
    """All exercises of a folder by id, in order; raises `IgspError` for a file that is not laid out as one."""
    found = {}
    for path in sorted((root or folder()).glob("ex*_*.py")):
        source = path.read_text(encoding="utf8")
        head = HEAD.match(source)
        if head is None or not REGION.search(source) or source.count(CHECK) != 1 or head[1] != path.stem[:4]:
            raise IgspError(f"'{path.name}' is no exercise: it needs a head with its id, a BEGIN-END region, a check")
        found[head[1]] = Exercise(head[1], head[2], head[3], head[4], head[5], path.name, source)
    return found


def exercise(name: str) -> Exercise:
    """The exercise of that id; raises `UnknownName`."""
    known = exercises()
    if name not in known:
        raise UnknownName("exercise", name, known)
    return known[name]


def stub(source: str) -> str:
    """What the learner gets: every solution replaced by an error that names its hint."""
    return solve(source, [f"{m[1]}raise NotImplementedError({m[2]!r})\n" for m in REGION.finditer(source)])


def solutions(source: str) -> list[str]:
    """The texts between the markers, in order."""
    return [match[3] for match in REGION.finditer(source)]


def solve(text: str, parts: Sequence[str]) -> str:
    """Puts `parts` between the markers of `text`: `solve(stub(s), solutions(s)) == s`."""
    remaining = iter(parts)
    return REGION.sub(lambda m: f"{m[1]}# BEGIN: {m[2]}\n{next(remaining)}{m[1]}# END\n", text)


def attempt(path: Path, source: str) -> str:
    """Runs the check of `source` on the definitions in the learner's file; returns what is wrong, '' if nothing is.

    Call it in a process of its own (`check` does): the file is a program.
    """
    names = {"__name__": path.stem}
    exec(compile(stub(source), "exercise", "exec"), names)  # what the file lacks counts as still to do
    try:
        exec(compile(path.read_text(encoding="utf8"), str(path), "exec"), names)
        exec(compile(source.partition(CHECK)[2], "check", "exec"), names)
        eval("check()", names)
    except NotImplementedError as missing:
        return f"still to do: {missing}"
    except AssertionError as hint:
        return str(hint) or "an assertion of your file failed"
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]} of your file)" if lines else "")
    return ""


def check(chosen: Exercise, path: Path, seconds: float = SECONDS) -> str:
    """What is wrong with the learner's file `path`, '' if it passes. It runs in a process of its own, for `seconds`.

    Raises:
        UsageError: no such file.
    """
    if not path.is_file():
        raise UsageError(f"'{path}' does not exist: `igsp course start {chosen.id}` writes the file to begin with")
    command = [sys.executable, "-m", "igsp_book.course", str(path), str(folder() / chosen.name)]
    try:
        run = subprocess.run(command, stderr=subprocess.PIPE, text=True, encoding="utf8", timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:g} seconds: is there a loop without an end?"
    return "" if run.returncode == 0 else run.stderr.strip() or f"ended with exit code {run.returncode}"


def start(chosen: Exercise, path: Path) -> Path:
    """Writes the learner's file; raises `UsageError` rather than overwrite one."""
    if path.exists():
        raise UsageError(f"'{path}' exists: give another name, or remove it to begin anew")
    with whole_or_nothing(path) as temporary:
        temporary.write_text(stub(chosen.source), encoding="utf8")
    return path


def pack(files: Mapping[str, bytes]) -> bytes:
    """A zip archive whose bytes depend on names and contents alone: sorted, stored, no clock."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)  # dated 1980-01-01
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def packs(book: Path) -> dict[str, bytes]:
    """The two archives by file name, made from the folder `book`."""
    from igsp_book import slides  # needs the Markdown parser of the book

    known = exercises(book / "exercises").values()
    pages = [(book / f"{name}.md").read_text(encoding="utf8") for name in GUIDE]
    students = {f"exercises/{e.name}": stub(e.source) for e in known}
    students |= {f"slides/{name}": page for name, page in slides.decks(book / "slides").items()}
    students |= {"guide.html": slides.document(TITLE, pages)}
    notes = (book / "course-notes.md").read_text(encoding="utf8")
    extra = {f"solutions/{e.name}": e.source for e in known}
    extra |= {"notes.html": slides.document(TITLE, [notes])}
    contents = {STUDENTS: students, INSTRUCTORS: students | extra}
    return {name: pack({path: text.encode() for path, text in files.items()}) for name, files in contents.items()}


def build(out: Path, book: Path | None = None) -> list[Path]:
    """Writes the two packs into the folder `out`."""
    written = []
    for name, content in packs(book or repository_root() / "book").items():
        with whole_or_nothing(out / name) as temporary:
            temporary.write_bytes(content)
        written.append(out / name)
    return written


if __name__ == "__main__":
    problem = attempt(Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf8"))
    print(problem, file=sys.stderr, end="")
    sys.exit(1 if problem else 0)
