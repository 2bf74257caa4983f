"""The pins of the project agree with one another."""

import re
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement

from igsp import __version__
from igsp.provenance import repository_root

ROOT = Path(repository_root())


LOCKS = ("requirements.lock", "requirements-cuda.lock")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by package."""
    found: dict[str, tuple[str, list[str]]] = {}
    for lock in LOCKS:
        for line in (ROOT / lock).read_text(encoding="utf8").splitlines():
            if pin := re.match(r"([a-z0-9.-]+)==([^\s;]+)", line):
                found[pin[1]] = (pin[2], [])
                last = pin[1]
            elif digest := re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?", line):
                found[last][1].append(digest[1])
            else:
                assert line.startswith("#"), line  # no address of an index, no build from elsewhere
    return found


def test_the_locks_hold_exact_pins_with_their_hashes():
    pins = locked()
    assert len(pins) > 200 and all(hashes and "+" not in version for version, hashes in pins.values())
    assert len(set(pins["torch"][1])) == len(pins["torch"][1]) > 20


def test_every_dependency_is_locked_inside_its_range():
    project, pins = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"], locked()
    extras = project["optional-dependencies"]
    for text in project["dependencies"] + [r for extra in ("book", "dev", "cluster") for r in extras[extra]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[normal(requirement.name)][0]), text


def test_what_is_installed_needs_nothing_that_is_not_locked():
    """The locks are installed without looking at dependencies, so they must name all of them."""
    pins, environment = locked(), default_environment()
    for name in pins:
        with suppress(PackageNotFoundError):
            for text in distribution(name).requires or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({**environment, "extra": ""}):
                    assert normal(needed.name) in pins, f"{name} needs {text}"


def test_the_conda_file_installs_the_locks():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf8"))
    listed = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert listed == ["--require-hashes", "--no-build-isolation", *(f"-r {lock}" for lock in LOCKS)]


def test_workflows_take_actions_by_commit():
    uses = [use for path in (ROOT / ".github" / "workflows").glob("*.yml")
            for use in re.findall(r"uses: *(\S+)", path.read_text(encoding="utf8"))]
    assert len(uses) > 10 and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", use) for use in uses)


def test_one_version():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["version"] == __version__
