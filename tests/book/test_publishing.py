"""What publishes the book: workflows that fit their schema and name existing commands, a citation that fits as well."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def fits(schema: str, *paths: Path) -> bool:
    """Whether files fit a schema that the package check-jsonschema carries; asks no other host."""
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_workflows_and_citation_fit_their_schemas(tmp_path: Path) -> None:
    assert fits("github-workflows", *WORKFLOWS)
    assert fits("citation-file-format", ROOT / "CITATION.cff")
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text(encoding="utf8").replace("runs-on:", "run-on:"), encoding="utf8")
    assert not fits("github-workflows", wrong)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_ask_for_rights_and_pin_what_they_use(path: Path) -> None:
    workflow = yaml.load(path.read_text(encoding="utf8"), Loader=yaml.BaseLoader)
    assert "permissions" in workflow
    for job in workflow["jobs"].values():
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= workflow["jobs"].keys()
    for step in steps(workflow):
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_that_exist(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf8"), re.MULTILINE))
    workflow = yaml.load(path.read_text(encoding="utf8"), Loader=yaml.BaseLoader)
    called = {target for step in steps(workflow) for target in re.findall(r"\bmake ([\w-]+)", step.get("run", ""))}
    assert called and called <= targets


def test_the_citation_fits_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["message"]
    assert "2606.03328" in str(citation["references"])


def test_every_term_of_the_prose_is_in_the_glossary() -> None:
    glossary = (ROOT / "book" / "glossary.md").read_text(encoding="utf8")
    defined = {line.strip().lower() for line in glossary.splitlines() if line and not line.startswith((" ", "#", "`"))}
    for page in sorted((ROOT / "book").glob("*.md")):
        for term in re.findall(r"\{term\}`([^`]+)`", page.read_text(encoding="utf8")):
            name = (re.search(r"<(.+)>", term) or re.search(r"(.+)", term)).group(1)  # type: ignore[union-attr]
            assert name.lower() in defined, f"{page.name}: '{name}' is not in the glossary"


def test_the_bibliography_is_cited() -> None:
    entries = (ROOT / "book" / "references.bib").read_text(encoding="utf8")
    keys = set(re.findall(r"^@\w+\{(\w+),", entries, re.MULTILINE))
    pages = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.py")]
    text = "\n".join(page.read_text(encoding="utf8") for page in pages)
    cited = {key for group in re.findall(r"\{cite(?::\w)?\}`([^`]+)`", text) for key in group.split(",")}
    assert cited == keys
