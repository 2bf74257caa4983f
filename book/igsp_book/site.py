"""What the site needs beyond Sphinx's defaults: local mathematics, our style sheet and script, no remote code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import vl_convert
from docutils import nodes
from sphinx.application import Sphinx

from igsp.assets import catalog, members, read_member
from igsp.errors import AssetError
from igsp.study.claims import REFERENCE, for_machines
from igsp.study.values import read_values

STATIC = Path(__file__).parent / "static"
MATHJAX_WHEEL = "sphinx-mathjax-offline"
MATHJAX_ROOT = "sphinx-mathjax-offline/static/mathjax/"
MATHJAX_SCRIPT = "tex-mml-chtml.js"
MATHJAX_FONTS = "output/chtml/fonts/woff-v2/"
UNITS = re.compile(r"(?<=\d) (?=%)|(?<=\b[npρ]) (?=[<=]\s?[\d+−.])|(?<=\b[npρ] [<=]) (?=[\d+−.])")
VIEWPORT = re.compile(r'<meta name="viewport"[^>]*>')
VIEWPORT_TAG = '<meta name="viewport" content="width=device-width, initial-scale=1">'
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
    licence = Path(app.srcdir) / "LICENSE"
    if licence.exists():
        (static / "LICENSE.txt").write_text(licence.read_text(encoding="utf8"), encoding="utf8")
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    (static / "vega.js").write_text(f"(() => {{{bundle}\n}})();\n", encoding="utf8")


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
    """Drops the remote notebook-execution scripts that the theme registers; adds icon, description, preview, footer."""
    if app.env.metadata.get(pagename, {}).get("igsp_quiz"):
        app.add_js_file("quiz.js", loading_method="defer")
    for kind in ("script_files", "css_files"):
        context[kind] = _without_thebe(context.get(kind, []))
    context["favicon_url"] = context["pathto"]("_static/favicon.svg", resource=True)
    about = description(doctree)
    title = re.sub(r"<[^>]+>", "", str(context.get("title") or app.config.html_title))
    tags = {"og:title": title, "og:type": "article", "og:site_name": app.config.html_title, "og:description": about}
    tags |= {"og:url": context["pageurl"]} if context.get("pageurl") else {}
    shown = [f'<meta name="description" content="{escape(about)}">'] if about else []
    shown += [f'<meta property="{name}" content="{escape(text)}">' for name, text in tags.items() if text]
    context["metatags"] = "\n".join([context.get("metatags") or "", *shown])
    context["theme_extra_footer"] = footer(app.config.igsp_repository, context["pathto"])


def description(doctree: nodes.document | None, length: int = 160) -> str:
    """The first paragraph of a page, cut at a word; one in a panel or a note counts only where there is no other."""
    found = list(doctree.findall(nodes.paragraph)) if doctree else []
    plain = [one for one in found if isinstance(one.parent, nodes.section | nodes.document)]
    text = " ".join(one.astext() for one in (plain or found)[:1]).replace("\n", " ")
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + "\N{HORIZONTAL ELLIPSIS}"


def footer(repository: str, pathto: Any) -> str:
    """Licence, citation and source, the last one as a plain word while no repository is configured."""
    source = f'<a href="{escape(repository)}">Source</a>' if repository else "Source: in the release archive"
    licence, cite = pathto("_static/LICENSE.txt", resource=True), pathto("book/index").rstrip("#") + "#cite"
    return f'<p><a href="{licence}">Apache License 2.0</a> · <a href="{cite}">Cite</a> · {source}</p>'


def lost_page(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The page for addresses that the site does not have."""
    text = "<h1>Page not found</h1><p>Try the search, or begin on the <a href='{}'>first page</a>.</p>"
    home = app.builder.get_target_uri(app.config.root_doc)
    yield "404", {"title": "Page not found", "body": text.format(escape(home))}, "page.html"


def write_indexes(app: Sphinx, exception: Exception | None) -> None:
    """`llms.txt`, the pages with their descriptions for programs; a sitemap where the site's address is configured."""
    if exception is not None or app.builder.format != "html":
        return
    out, base, uri = Path(app.outdir), app.config.html_baseurl, app.builder.get_target_uri
    pages = sorted(app.env.found_docs)
    summary = description(app.env.get_doctree(app.config.root_doc))
    lines = [f"# {app.config.html_title}", "", f"> {summary}", "", "## Pages", ""]
    for name in pages:
        about = description(app.env.get_doctree(name))
        lines.append(f"- [{app.env.titles[name].astext()}]({base}{uri(name)}): {about}".rstrip(": "))
    (out / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf8")
    if base:
        places = "".join(f"<url><loc>{escape(base + uri(name))}</loc></url>" for name in pages)
        text = f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{places}</urlset>\n'
        (out / "sitemap.xml").write_text(text, encoding="utf8")


def write_claims(app: Sphinx, exception: Exception | None) -> None:
    """`claims.json`: the ledger for programs, where the reference run's values are published."""
    if exception is not None or app.builder.format != "html":
        return
    values = read_values(Path(app.srcdir) / app.config.igsp_results / app.config.igsp_profile / "values")
    if any(key.startswith(f"{REFERENCE}/spearman/") for key in values):
        text = json.dumps(for_machines(values), indent=1, ensure_ascii=False)
        (Path(app.outdir) / "claims.json").write_text(text + "\n", encoding="utf8")


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

    The theme's font preloads go: a browser refuses them on `file://` pages, and the icons do not need them; so does the
    second viewport that it declares. The entries of the bibliography become list items, as the role that docutils gives
    them is deprecated.
    """
    if exception is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        text = path.read_text(encoding="utf8")
        tidy = FONT_PRELOAD.sub("", text).replace('role="doc-biblioentry"', 'role="listitem"')
        tidy = re.sub(r"<title>(.+?) &#8212; \1</title>", r"<title>\1</title>", tidy)  # of the first page
        first, *more = VIEWPORT.split(tidy)
        tidy = first + VIEWPORT_TAG + "".join(more) if more else tidy
        if tidy != text:
            path.write_text(tidy, encoding="utf8")
