"""What the site needs beyond Sphinx's defaults: local mathematics, our style sheet and script, no remote code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vl_convert
from docutils import nodes
from sphinx.application import Sphinx

from igsp.assets import catalog, members, read_member
from igsp.errors import AssetError

STATIC = Path(__file__).parent / "static"
MATHJAX_WHEEL = "sphinx-mathjax-offline"
MATHJAX_ROOT = "sphinx-mathjax-offline/static/mathjax/"
MATHJAX_SCRIPT = "tex-mml-chtml.js"
MATHJAX_FONTS = "output/chtml/fonts/woff-v2/"
UNITS = re.compile(r"(?<=\d) (?=%)|(?<=\b[npρ]) (?=[<=]\s?[\d+−.])|(?<=\b[npρ] [<=]) (?=[\d+−.])")
FONT_PRELOAD = re.compile(r'\s*<link rel="preload" as="font"[^>]*>')


def write_static(app: Sphinx) -> None:
    """Puts MathJax (from its pinned wheel), the palette and the favicon under `_static` of an HTML build."""
    app.config.html_static_path.append(str(STATIC))
    if app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    try:
        _write_mathjax(static / "mathjax")
    except AssetError:
        if not app.config.igsp_preview:  # a preview without the wheel shows formulas as they are typed
            raise
    static.mkdir(parents=True, exist_ok=True)
    palette = catalog("palette")["dimensions"]
    (static / "favicon.svg").write_text(favicon(palette), encoding="utf8")
    (static / "palette.css").write_text(palette_css(palette), encoding="utf8")
    (static / "vega.js").write_text(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"), encoding="utf8")


def _write_mathjax(folder: Path) -> None:
    if (folder / MATHJAX_SCRIPT).exists():
        return
    wanted = [name.removeprefix(MATHJAX_ROOT) for name in members(MATHJAX_WHEEL) if name.startswith(MATHJAX_ROOT)]
    fonts = [name for name in wanted if name.startswith(MATHJAX_FONTS) and name.endswith(".woff")]
    for name in [*fonts, MATHJAX_SCRIPT]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_member(MATHJAX_WHEEL, MATHJAX_ROOT + name))


def palette_css(palette: Mapping[str, str]) -> str:
    """The dimension colours as CSS variables, for pages that draw."""
    return ":root {" + " ".join(f"--igsp-{name}: {colour};" for name, colour in palette.items()) + "}\n"


def favicon(palette: Mapping[str, str]) -> str:
    """Four bars, one per dimension, each with its lower part kept and its upper part pruned."""
    kept = {"general": 20, "commonsense": 23, "code": 12, "math": 16}
    bars = []
    for index, (dimension, height) in enumerate(kept.items()):
        x, colour = 2 + 7.2 * index, palette[dimension]
        bars.append(f'<rect x="{x:.1f}" y="3" width="6" height="{26 - height}" rx="1" fill="{colour}" opacity=".3"/>')
        bars.append(f'<rect x="{x:.1f}" y="{29 - height}" width="6" height="{height}" rx="1" fill="{colour}"/>')
    return '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">' + "".join(bars) + "</svg>\n"


def clean_page(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Drops the remote notebook-execution scripts that the theme registers, and points to our favicon."""
    if app.env.metadata.get(pagename, {}).get("igsp_quiz"):
        app.add_js_file("quiz.js", loading_method="defer")
    for kind in ("script_files", "css_files"):
        context[kind] = _without_thebe(context.get(kind, []))
    context["favicon_url"] = context["pathto"]("_static/favicon.svg", resource=True)


def _without_thebe(assets: list[Any]) -> list[Any]:
    """The assets that have nothing to do with thebe, each once."""
    kept: list[Any] = []
    for asset in assets:
        text = f"{getattr(asset, 'filename', asset)}{getattr(asset, 'attributes', '')}".lower()
        if "thebe" not in text and asset not in kept:
            kept.append(asset)
    return kept


def keep_units(app: Sphinx, doctree: nodes.document) -> None:
    """Puts no-break spaces into `60 %`, `n = 15` and `p < 0.05`, so that no line ends between number and unit."""
    for node in list(doctree.findall(nodes.Text)):
        if not isinstance(node.parent, (nodes.literal, nodes.FixedTextElement, nodes.math, nodes.raw)):
            kept = UNITS.sub("\N{NO-BREAK SPACE}", node)
            if kept != node:
                node.parent.replace(node, nodes.Text(kept))


def tidy_pages(app: Sphinx, exception: Exception | None) -> None:
    """Repairs the finished pages where no template can.

    The theme's font preloads go: a browser refuses them on `file://` pages, and the icons do not need them. The
    entries of the bibliography become list items, as the role that docutils gives them is deprecated.
    """
    if exception is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        text = path.read_text(encoding="utf8")
        tidy = FONT_PRELOAD.sub("", text).replace('role="doc-biblioentry"', 'role="listitem"')
        if tidy != text:
            path.write_text(tidy, encoding="utf8")
