"""The course: exercise and solution are one text, the checks find mistakes, the packs hold what they should."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from igsp_book import course, slides
from igsp_book.questions import questions

from igsp.cli import main
from igsp.errors import IgspError, UnknownName, UsageError

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
EXERCISES = course.exercises(BOOK / "exercises")
SESSIONS = sorted(BOOK.glob("course-[0-9].md"))


@pytest.fixture(params=EXERCISES)
def exercise(request: pytest.FixtureRequest) -> course.Exercise:
    return EXERCISES[request.param]


# Exercises


def test_exercise_and_solution_are_one_text(exercise: course.Exercise) -> None:
    parts = course.solutions(exercise.source)
    given = course.stub(exercise.source)
    assert course.solve(given, parts) == exercise.source
    assert not any(part in given for part in parts), "the learner's file must not hold the solution"
    assert given.partition(course.CHECK)[2] == exercise.source.partition(course.CHECK)[2]


def test_the_solution_passes_and_the_stub_does_not(exercise: course.Exercise, tmp_path: Path) -> None:
    path = tmp_path / exercise.name
    path.write_text(exercise.source)
    assert course.attempt(path, exercise.source) == ""
    path.write_text(course.stub(exercise.source))
    assert course.attempt(path, exercise.source).startswith("still to do: ")


@pytest.mark.parametrize(("name", "right", "wrong"), [
    ("ex01", "new = w - w[q] / inverse", "new = w - w[q] / hessian"),
    ("ex02", "np.linalg.norm(X, axis=1)", "1"),
    ("ex03", "order[:, :, : group - keep]", "order[:, :, keep:]"),
    ("ex04", "Fraction(str(sparsity))", "sparsity"),
    ("ex05", "np.linalg.inv(damped)).T", "np.linalg.inv(damped))"),
    ("ex06", "new[j:] -= e", "new[:j] -= e"),
    ("ex07", "counts[name] - shares[name]", "-shares[name]"),
    ("ex08", "sum(v) / len(v)", "max(v)"),
    ("ex09", "np.asarray(lengths) - 1", "np.asarray(lengths)"),
    ("ex10", "len(text.encode())", "len(text)"),
    ("ex11", "len(set(grams)) / len(grams)", "len(grams) / len(set(grams))"),
    ("ex12", "(equal + 1) / 2", "1"),
    ("ex13", "(1 + extreme) / (1 + resamples)", "extreme / resamples"),
    ("ex14", "np.maximum.accumulate", ""),
    ("ex15", "for v in (x, y))", "for v in (x, np.roll(y, 1)))"),
    ("ex16", "np.abs(correlations(x, y))", "correlations(x, y)"),
    ("ex17", "len(sets[i] - covered)", "len(sets[i])"),
    ("ex18", "logits - logits.max()", "logits"),
    ("ex19", "b[first].mean(1)", "b[second].mean(1)"),
    ("ex20", "2 / comb(2 * k, k)", "1 / comb(2 * k, k)"),
    ("ex21", 'min(evaluate(weights, "confirm"))', "value"),
    ("ex22", "shuffled[:, group] = rng.permuted(shuffled[:, group]", "shuffled = rng.permuted(shuffled"),
])  # fmt: skip
def test_a_usual_mistake_is_found(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    source = EXERCISES[name].source
    assert right in source.partition(course.CHECK)[0]
    path = tmp_path / "mine.py"
    path.write_text(source.replace(right, wrong))
    assert course.attempt(path, source) != ""


def test_every_exercise_has_its_place() -> None:
    assert list(EXERCISES) == [f"ex{number:02d}" for number in range(1, len(EXERCISES) + 1)] and len(EXERCISES) >= 16
    assert {e.stars for e in EXERCISES.values()} == {"★", "★★", "★★★"}
    for exercise in EXERCISES.values():
        notebook = ROOT / "notebooks" / f"{Path(exercise.page).name}.py"
        assert (ROOT / f"{exercise.page}.md").exists() or notebook.exists(), f"{exercise.id}: no page {exercise.page}"
    listed = set(re.findall(r"^:page: (\S+)$", "\n".join(p.read_text() for p in SESSIONS), re.MULTILINE))
    assert listed == {e.page for e in EXERCISES.values()}, "every exercise belongs to a session"


def test_a_file_that_is_no_exercise_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ex01_x.py").write_text('"""ex02 ★ Wrong id\n\nPage: p\n\nText\n"""\n')
    with pytest.raises(IgspError, match=r"ex01_x\.py"):
        course.exercises(tmp_path)
    with pytest.raises(UnknownName, match="ex05"):
        course.exercise("ex5")


# The command


def test_the_command_tells_pass_from_fail_and_from_misuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    assert main(["course", "start", "ex14", str(path)]) == 0
    assert main(["check", "ex14", str(path)]) == 1
    path.write_text(course.solve(path.read_text(), ["    return [0.012, 0.021, 0.034, 0.042]\n"]))
    assert main(["check", "ex14", str(path)]) == 1
    path.write_text(EXERCISES["ex14"].source)
    assert main(["check", "ex14", str(path)]) == 0
    assert main(["course", "start", "ex14", str(path)]) == 2, "a learner's work is not overwritten"
    assert main(["check", "ex14", str(tmp_path / "none.py")]) == 2
    assert main(["check", "ex141", str(path)]) == 2
    out, err = capsys.readouterr()
    assert "may not fall below the one before" in out and "ex14: pass" in out
    assert "igsp course start ex14" in err and "did you mean ex14" in err


@pytest.mark.parametrize(("text", "words"), [
    ("while True:\n    pass\n", "stopped after"), ("import sys\nsys.exit(0)\n", "SystemExit"),
    ("def holm(p):\n    return 1 / 0\n", "ZeroDivisionError: division by zero (line 2 of your file)"),
    ("def holm(p:\n", "SyntaxError"), ("x = 1\n", "still to do"),
])  # fmt: skip
def test_a_program_that_goes_wrong_does_not_pass(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert words in course.check(EXERCISES["ex14"], path, seconds=3 if "stopped" in words else 60)


# Packs


def names(archive: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name).decode() for name in opened.namelist()}


def test_packs_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in course.build(tmp_path)}
    assert first == course.packs(BOOK) and set(first) == {course.STUDENTS, course.INSTRUCTORS}


def test_students_get_no_solution_and_instructors_all() -> None:
    archives = course.packs(BOOK)
    students, instructors = names(archives[course.STUDENTS]), names(archives[course.INSTRUCTORS])
    assert students.items() <= instructors.items()
    for exercise in EXERCISES.values():
        assert students[f"exercises/{exercise.name}"] == course.stub(exercise.source)
        assert instructors[f"solutions/{exercise.name}"] == exercise.source
        assert not any(part in text for part in course.solutions(exercise.source) for text in students.values())
    assert "guide.html" in students and "notes.html" not in students and "notes.html" in instructors


def test_an_unpacked_pack_checks_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipfile.ZipFile(io.BytesIO(course.packs(BOOK)[course.STUDENTS])).extractall(tmp_path)
    monkeypatch.setattr(course, "repository_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    given = Path("exercises") / EXERCISES["ex10"].name
    assert course.check(course.exercise("ex10"), given).startswith("still to do")
    given.write_text(course.solve(given.read_text(), course.solutions(EXERCISES["ex10"].source)))
    assert course.check(course.exercise("ex10"), given) == ""
    monkeypatch.chdir("slides")
    monkeypatch.setattr(course, "repository_root", lambda: tmp_path / "slides")
    with pytest.raises(UsageError, match="students' pack"):
        course.exercises()


# Slides and quizzes


def test_slides_stand_alone() -> None:
    decks = slides.decks(BOOK / "slides")
    assert list(decks) == [f"session-{path.stem[-1]}.html" for path in SESSIONS]
    for page in decks.values():
        assert page.count("<h1>") == 1 and page.count("<section>") >= 8
        assert not re.search(r"(?:src|href)=\"(?!data:,)|https?://|url\(", page), "a deck loads nothing"


def test_the_guide_holds_no_markup_of_the_book() -> None:
    guide = slides.document("Guide", [path.read_text() for path in SESSIONS])
    text = re.sub(r"(?s)<(style|script)>.*?</\1>", "", guide)
    assert not re.search(r"\{[\w-]+\}|```|\]\(|right: ", text)
    assert text.count("<summary>Answer") == sum(path.read_text().count("- question:") for path in SESSIONS)


@pytest.mark.parametrize("path", [*SESSIONS, *sorted(BOOK.glob("primer-*.md"))], ids=lambda path: path.stem)
def test_each_page_to_learn_from_ends_with_a_quiz(path: Path) -> None:
    found = [match[2] for match in slides.DIRECTIVE.finditer(path.read_text(encoding="utf8")) if match[1] == "quiz"]
    assert len(found) == 1 and 3 <= len(questions(found[0])) <= 5


@pytest.mark.parametrize(("text", "words"), [
    ("just text", "list of questions"), ("- question: [", "list of questions"),
    ("- {question: q, options: [a, b]}", "`why`"), ("- {question: q, options: [a, b], why: w}", "question 1"),
    ("- {question: q, options: [right: a], why: w}", "a wrong one"),
])
def test_an_incomplete_quiz_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        questions(text)


PAGE = """```{quiz}
- question: Which $x$ is *right*?
  options:
    - no
    - right: yes
  why: See [there](book/exercises.md).
```

```{exercises}
:page: book/protocols
```

```{course-file} slides/session-1.html Slides
```"""


CONFIGURATION = """extensions = ['myst_nb', 'igsp_book.extension']
nb_execution_mode = 'off'
root_doc = 'index'
html_theme = 'basic'
exclude_patterns = ['book/course*', 'book/slides']
"""


def build(folder: Path, page: str) -> subprocess.CompletedProcess[str]:
    """Builds a book of two pages strictly: an index with `page` in it, and the list of exercises."""
    (folder / "source" / "index.md").write_text(f"# Book\n\n{page}\n\n```{{toctree}}\nbook/exercises\n```\n")
    (folder / "source" / "conf.py").write_text(CONFIGURATION)
    command = [sys.executable, "-m", "sphinx", "-b", "dirhtml", "-W", "-n", "--keep-going", "-q",
               "-d", str(folder / "doctrees"), str(folder / "source"), str(folder / "out")]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A book with the exercises and slides of this one, and a MathJax script so that no pinned wheel is needed."""
    script = tmp_path / "out" / "_static" / "mathjax" / "tex-mml-chtml.js"
    script.parent.mkdir(parents=True)
    script.write_text("// placeholder\n")
    for name in ("exercises", "slides"):
        shutil.copytree(BOOK / name, tmp_path / "source" / "book" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for page in BOOK.glob("course*.md"):
        shutil.copy(page, tmp_path / "source" / "book")
    (tmp_path / "source" / "book" / "exercises.md").write_text("# Exercises\n\n```{exercises}\n```\n")
    return tmp_path


def test_a_strict_build_shows_quiz_and_exercises(folder: Path) -> None:
    run = build(folder, PAGE)
    assert run.returncode == 0, run.stderr
    index = (folder / "out" / "index.html").read_text(encoding="utf8")
    assert '<input type="radio"' in index and 'value="right"' in index and "quiz.js" in index
    assert "<details><summary>Answer to question 1</summary>" in index, "the answer is there without JavaScript"
    assert 'href="book/exercises/#ex17"' in index and 'href="_static/course/slides/session-1.html"' in index
    page = (folder / "out" / "book" / "exercises" / "index.html").read_text(encoding="utf8")
    assert all(f'id="{name}"' in page for name in EXERCISES) and "quiz.js" not in page
    for target in re.findall(r'href="\.\./\.\./(_static/course/[^"]+)"', page):
        assert (folder / "out" / target).is_file()
    served = "".join(path.read_text(errors="ignore") for path in (folder / "out" / "_static" / "course").rglob("*.py"))
    assert not any(part in served for e in EXERCISES.values() for part in course.solutions(e.source))


def test_what_the_course_lacks_fails_the_build(folder: Path) -> None:
    wrong = {
        "```{quiz}\n- question: x\n```": "question 1 of the quiz", "```{exercises}\n:page: book/none\n```": "book/none",
        "```{course-file} slides/session-9.html\n```": "did you mean slides/session-",
    }
    run = build(folder, "\n\n".join(wrong))
    assert run.returncode != 0 and [words for words in wrong.values() if words not in run.stderr] == []
