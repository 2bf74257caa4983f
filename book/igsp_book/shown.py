"""The directive that puts a table or a figure of an executed notebook into another page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes

from igsp.errors import UnknownName
from igsp_book.base import NOTEBOOKS, BookDirective, page_link


def outputs(path: Path) -> dict[str, dict[str, Any]]:
    """The named outputs of an executed notebook; of two with one name the later one."""
    cells = json.loads(path.read_text(encoding="utf8"))["cells"]
    found = (output for cell in cells for output in cell.get("outputs", []))
    return {output["metadata"]["igsp"]["name"]: output for output in found
            if output.get("metadata", {}).get("igsp", {}).get("name")}


class Shown(BookDirective):
    """`{shown} notebook name`: what `igsp.figures` displayed there under that name, with a link to the notebook.

    Raises `UnknownName` for a notebook that was not executed, or a name that it does not show.
    """

    required_arguments = 2

    def build(self) -> list[nodes.Node]:
        notebook, name = self.arguments
        path = Path(self.env.srcdir) / NOTEBOOKS / f"{notebook}.ipynb"
        if not path.exists():
            raise UnknownName("notebook", notebook, [found.stem for found in path.parent.glob("*.ipynb")])
        self.env.note_dependency(str(path))
        self.env.metadata[self.env.docname]["igsp_reads_results"] = True
        found = outputs(path)
        if name not in found:
            raise UnknownName("table or figure", name, found)
        origin = nodes.paragraph("", "", page_link(self.env, f"{NOTEBOOKS}/{notebook}", nodes.Text("How it was made")))
        origin["classes"] = ["igsp-origin"]
        return [self._node(found[name], name), origin]

    def _node(self, output: dict[str, Any], name: str) -> nodes.Node:
        about, data = output["metadata"]["igsp"], output["data"]
        if "image/png" not in data:
            return nodes.raw("", "".join(data["text/html"]), format="html")
        picture = f"data:image/png;base64,{''.join(data['image/png']).strip()}"
        figure = nodes.figure("", nodes.image(uri=picture, alt=about["alt"]), ids=[name], classes=["igsp-figure"])
        figure += nodes.caption("", "", *self.inline(about["caption"]))
        return figure
