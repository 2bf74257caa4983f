"""Directives that print what a catalogue, the store or the command line holds, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives

from igsp.assets import catalog
from igsp.errors import UnknownName
from igsp.study.claims import REFERENCE
from igsp.study.records import Store
from igsp.text.catalogue import DIMENSIONS, ORIGINS, catalogue
from igsp_book import explorer
from igsp_book.base import BookDirective, published, result_nodes, results_folder
from igsp_book.tables import Cell, code, folded, table

KEPT = (*DIMENSIONS, "total")
HELP_WIDTH = 78  # characters; the same whatever terminal the build runs in


class SourcesTable(BookDirective):
    """The catalogue of calibration sources, or those of one dimension or of some origins (`:origin: hub file`)."""

    option_spec: ClassVar = {"dimension": directives.unchanged, "origin": str.split}  # type: ignore[misc]

    def build(self) -> list[nodes.Node]:
        wanted, origins = self.options.get("dimension"), self.options.get("origin", ORIGINS)
        users = {profile: catalog(f"profiles/{profile}")["sources"] for profile in ("quick", "small", "paper")}
        rows = [
            [code(source.id), source.dimension.capitalize(), f"{source.about}{' (generated)' * source.generated}",
             ", ".join(profile for profile, names in users.items() if source.id in names) or "none",
             str(source.licence)]
            for source in catalogue().values() if wanted in (None, source.dimension) and source.origin in origins
        ]
        return [table(["Source", "Dimension", "What it is", "Profiles", "Licence"], rows,
                      f"{len(rows)} calibration sources.", classes="igsp-stack")]


class ProtocolSettings(BookDirective):
    """The settings of one protocol from the catalogue: value, where it is known from, and remarks."""

    required_arguments = 1
    option_spec: ClassVar = {"title": directives.unchanged}  # type: ignore[misc]
    origins: ClassVar = {"published": "published", "released": "released code", "ours": "our definition"}

    def build(self) -> list[nodes.Node]:
        name, known = self.arguments[0], catalog("protocols")
        if name not in known:
            raise UnknownName("protocol", name, known)
        rows = [[code(setting), plain(about["value"]), self.origins[about["status"]],
                 about.get("source") or about.get("note") or ""] for setting, about in known[name].items()]
        title = self.options.get("title", name)
        headings = ["Setting", "Value", "Known from", "Source or remark"]
        return [table(headings, rows, f"Settings of {title}.", "igsp-stack")]


def plain(value: Any) -> str:
    """A YAML value in words: mappings as `key value` pairs, null as `none`."""
    if isinstance(value, Mapping):
        nested = any(isinstance(inner, Mapping) for inner in value.values())
        return ("; " if nested else ", ").join(
            f"{key}{':' * isinstance(inner, Mapping)} {plain(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(plain(inner) for inner in value)
    return "none" if value is None else "a space" if value == " " else str(value)


class ValuesTable(BookDirective):
    """Every published value of the shown profile: the full record behind the numbers in the prose."""

    def build(self) -> list[nodes.Node]:
        values = published(self.env)
        rows: list[list[Cell]] = [
            [code(key), [*result_nodes(self.env, key, value, "interval"), nodes.Text(f" {value.label or ''}")]]
            for key, value in sorted(values.items())
        ]
        caption = f"Published values, profile {self.config.igsp_profile}."
        return folded(f"{len(rows)} values", table(["Key", "Value"], rows, caption, "igsp-dense igsp-values"))


class CliReference(BookDirective):
    """Each command of the `igsp` program with its options, as the program prints them."""

    def build(self) -> list[nodes.Node]:
        import typer

        from igsp.cli import HELP_OPTIONS, leaves

        result: list[nodes.Node] = []
        for name, command in leaves():
            section = nodes.section("", nodes.title("", "", code(name)), ids=[f"command-{name.replace(' ', '-')}"])
            context = typer.Context(command, info_name=name, terminal_width=HELP_WIDTH, help_option_names=HELP_OPTIONS)
            said = command.get_help(context)
            section += nodes.literal_block("", said.rstrip(), language="none")
            result.append(section)
        return result


class Explorer(BookDirective):
    """Choices, a drawing and a table over the stored records of the reference run, this build and further profiles.

    Without JavaScript the tables are what remains.
    """

    optional_arguments = 9

    def build(self) -> list[nodes.Node]:
        self.env.metadata[self.env.docname]["igsp_reads_results"] = True
        self.env.metadata[self.env.docname]["igsp_explorer"] = True
        profiles = dict.fromkeys([REFERENCE, *self.arguments, self.config.igsp_profile])
        found = [
            replace(point, run=f"{profile}: {point.run}")
            for profile in profiles
            for point in explorer.points(Store(results_folder(self.env) / profile).records())
        ]
        if not found:
            return [nodes.paragraph("", "The stores of these profiles hold no records, only published values.")]
        runs = dict.fromkeys(point.run for point in found)
        tables = (node for run in runs for node in folded(run, self._table([p for p in found if p.run == run])))
        intro = nodes.paragraph("", "The same data as tables:")
        return [nodes.raw("", explorer.html(found), format="html"), intro, *tables]

    def _table(self, found: list[explorer.Point]) -> nodes.table:
        rows = [[code(p.strategy) if p.strategy in catalogue() else p.strategy, p.kind.capitalize(),
                 *(f"{p.retention[name]:.1f}" for name in KEPT), f"{p.metrics['calibration_perplexity']:.1f}",
                 f"{p.metrics['aggregation_4']:.3f}"] for p in found]
        headings = ["Strategy", "Kind", *(name.capitalize() for name in KEPT), "Perplexity", "A4"]
        draws = " to ".join(dict.fromkeys(str(limit({p.draws for p in found})) for limit in (min, max)))
        caption = f"Likelihood retention in percent, perplexity and 4-gram aggregation, by draws: {draws}."
        return table(headings, rows, caption, classes="igsp-dense")
