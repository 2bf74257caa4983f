"""What the finished site needs beyond Sphinx's defaults: local mathematics, our style sheet and script, no remote code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from igsp.assets import catalog, members, read_member

STATIC = Path(__file__).parent / "static"
MATHJAX_WHEEL = "sphinx-mathjax-offline"
MATHJAX_ROOT = "sphinx-mathjax-offline/static/mathjax/"
MATHJAX_SCRIPT = "tex-mml-chtml.js"
MATHJAX_FONTS = "output/chtml/fonts/woff-v2/"


def write_static(app: Sphinx) -> None:
    """Puts MathJax (from its pinned wheel), the palette and the favicon under `_static` of an HTML build."""
    app.config.html_static_path.append(str(STATIC))
    if app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    _write_mathjax(static / "mathjax")
    static.mkdir(parents=True, exist_ok=True)
    palette = catalog("palette")["dimensions"]
    (static / "favicon.svg").write_text(favicon(palette), encoding="utf8")
    (static / "palette.css").write_text(palette_css(palette), encoding="utf8")


def _write_mathjax(folder: Path) -> None:
    if (folder / MATHJAX_SCRIPT).exists():
        return
    wanted = [name.removeprefix(MATHJAX_ROOT) for name in members(MATHJAX_WHEEL) if name.startswith(MATHJAX_ROOT)]
    fonts = [name for name in wanted if name.startswith(MATHJAX_FONTS) and name.endswith(".woff")]
    for name in [*fonts, MATHJAX_SCRIPT]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_member(MATHJAX_WHEEL, MATHJAX_ROOT + name))


def favicon(palette: Mapping[str, str]) -> str:
    """Four bars, one per dimension, each with its lower part kept and its upper part pruned."""
    kept = {"general": 20, "commonsense": 23, "code": 12, "math": 16}
    bars = []
    for index, (dimension, height) in enumerate(kept.items()):
        x, colour = 2 + 7.2 * index, palette[dimension]
        bars.append(f'<rect x="{x:.1f}" y="3" width="6" height="{26 - height}" rx="1" fill="{colour}" opacity=".3"/>')
        bars.append(f'<rect x="{x:.1f}" y="{29 - height}" width="6" height="{height}" rx="1" fill="{colour}"/>')
    return '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">' + "".join(bars) + "</svg>\n"


def palette_css(palette: Mapping[str, str]) -> str:
    """The dimension colours as CSS variables, for pages that draw."""
    return ":root {" + " ".join(f"--igsp-{name}: {colour};" for name, colour in palette.items()) + "}\n"


def clean_page(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Drops the remote notebook-execution scripts that the theme registers, and points to our favicon."""
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
