"""Writes a CycloneDX bill of materials: every locked package that is installed, with version and licence."""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

ROOT = Path(__file__).resolve().parent.parent


def bill() -> Bom:
    """The package itself and what the locks name, as far as it is installed here."""
    locks = "".join(path.read_text(encoding="utf8") for path in ROOT.glob("requirements*.lock"))
    locked, bom = set(re.findall(r"^([a-z0-9.-]+)==", locks, re.MULTILINE)), Bom()
    licence = LicenseFactory()
    for found in distributions():
        name, about = re.sub(r"[-_.]+", "-", found.name).lower(), found.metadata
        text = about.get("License-Expression") or (about.get("License") or "").partition("\n")[0]
        component = Component(
            name=name, version=found.version, type=ComponentType.LIBRARY, bom_ref=f"{name}@{found.version}",
            purl=PackageURL("pypi", name=name, version=found.version),
            licenses=[licence.make_from_string(text)] if text else [],
        )
        if name == "igsp":
            bom.metadata.component = component
        elif name in locked:
            bom.components.add(component)
    if bom.metadata.component:
        bom.register_dependency(bom.metadata.component, bom.components)
    return bom


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(JsonV1Dot6(bill()).output_as_string(indent=1) + "\n", encoding="utf8")
    print(target)
