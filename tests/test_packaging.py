"""The pins of the project agree with one another."""

import re
from pathlib import Path

import yaml

from igsp import __version__
from igsp.provenance import repository_root

ROOT = Path(repository_root())


def pins(lines):
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)(\[[a-z,]+\])?==([^\s;]+)", line.strip())
        if match:
            found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[3]
    return found


def test_environment_yml_agrees_with_the_lock():
    lock = pins((ROOT / "requirements.lock").read_text().splitlines())
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    conda = pins(listed)
    assert len(conda) == len(listed) - 1  # all but the constraint line are pins
    assert conda == {name: lock[name] for name in conda}


def test_every_dependency_is_locked_inside_its_range():
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = pins((ROOT / "requirements.lock").read_text().splitlines())
    wanted = project["dependencies"] + [r for extra in ("book", "dev") for r in project["optional-dependencies"][extra]]
    for text in wanted:
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert requirement.specifier.contains(lock[name]), text


def test_the_lock_holds_exact_pins_and_no_local_build():
    lines = [x for x in (ROOT / "requirements.lock").read_text().splitlines() if x and not x.startswith("#")]
    assert len(pins(lines)) == len(lines)
    assert not any("+" in line or "://" in line for line in lines)


def test_one_version():
    import tomllib

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
