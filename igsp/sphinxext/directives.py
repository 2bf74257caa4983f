"""The roles and directives of the book. Each shows what the store, a notebook or the catalogue holds; none computes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole

from igsp.assets import catalog
from igsp.errors import IgspError, UnknownName
from igsp.sources import DIMENSIONS, catalogue
from igsp.sphinxext import drawings, executed, explorer, ledger
from igsp.sphinxext.tables import Cell, badge, code, definitions, table
from igsp.sphinxext.values import Value, current_package, explain, is_stale, look_up, read_values, render, signed_form
from igsp.store import Store

NOTEBOOKS = "book/notebooks"
KEPT = (*DIMENSIONS, "total")
HELP_WIDTH = 80  # characters; the same whatever terminal the build runs in
VERDICT_KIND = {ledger.HOLDS: "holds", ledger.DIFFERS: "differs", ledger.UNTESTABLE: "untestable"}


def results_folder(env: BuildEnvironment) -> Path:
    """`book/results` of this build."""
    return Path(env.srcdir) / env.config.igsp_results


def published(env: BuildEnvironment) -> dict[str, Value]:
    """The values of the shown profile; marks the current page as one to read again at every build."""
    env.metadata[env.docname]["igsp_reads_results"] = True
    return read_values(results_folder(env) / env.config.igsp_profile / "values")


def page_link(env: BuildEnvironment, docname: str, *content: nodes.Node) -> nodes.Node:
    """A link to a page if the book has it, else just the content."""
    if docname not in env.found_docs:
        return nodes.inline("", "", *content)
    target = f"/{docname}"
    inner = nodes.inline("", "", *content, classes=["doc"])
    return addnodes.pending_xref("", inner, refdomain="std", reftype="doc", reftarget=target, refexplicit=True,
                                 refdoc=env.docname, refwarn=True)


def result_nodes(env: BuildEnvironment, key: str, value: Value, form: str) -> list[nodes.Node]:
    """A published number linked to the notebook that computed it, with a badge if other code computed it."""
    shown = nodes.abbreviation("", render(value, form), explanation=explain(key, value), classes=["igsp-result"])
    result: list[nodes.Node] = [page_link(env, f"{NOTEBOOKS}/{value.notebook}", shown)]
    if is_stale(value, current_package()):
        result += [nodes.Text(" "), badge("stale", "stale")]
    return result


class ResultRole(SphinxRole):
    """`` {result}`key` `` or `` {result}`key:format` ``; the formats are `values.FORMATS`."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        key, _, form = self.text.partition(":")
        try:
            return result_nodes(self.env, key, look_up(published(self.env), key), form or "value"), []
        except IgspError as error:
            return _refused(self, error)


class VerdictRole(SphinxRole):
    """`` {verdict}`claim-id` ``: the badge that the ledger gives to a claim."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        try:
            row = ledger.claim(self.text)
            return [verdict_badge(ledger.judge(row, published(self.env), self.config.igsp_profile).verdict)], []
        except IgspError as error:
            return _refused(self, error)


class ProfileRole(SphinxRole):
    """`` {profile}`name` ``: the name of the profile that this book shows (the text of the role is not used)."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        return [code(self.config.igsp_profile)], []


def _refused(role: SphinxRole, error: IgspError) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    message = role.inliner.reporter.warning(f"{role.name} '{role.text}': {error}", line=role.lineno)
    return [badge(f"missing: {role.text}", "stale")], [message]


def verdict_badge(verdict: ledger.Verdict) -> nodes.inline:
    return badge(verdict.status, VERDICT_KIND[verdict.status])


class BookDirective(SphinxDirective):
    """Turns the package's typed errors into build warnings that name the directive."""

    def run(self) -> list[nodes.Node]:
        try:
            return self.build()
        except IgspError as error:
            return [self.state_machine.reporter.warning(f"{self.name}: {error}", line=self.lineno)]

    def build(self) -> list[nodes.Node]:
        raise NotImplementedError

    def inline(self, text: str) -> list[nodes.Node]:
        """`text` read as Markdown, without a paragraph round it."""
        found, messages = self.state.inline_text(text, self.lineno)
        return [*found, *messages]

    def judged(self) -> list[ledger.Judged]:
        values = published(self.env)
        return [ledger.judge(row, values, self.config.igsp_profile) for row in ledger.claims()]

    def ours(self, row: ledger.Judged) -> list[nodes.Node]:
        """The values of a claim, one after another, each linked to its notebook."""
        result: list[nodes.Node] = []
        for key, value in row.values.items():
            if result:
                result.append(nodes.Text("; "))
            result += result_nodes(self.env, key, value, signed_form(key))
            if value.p is not None:
                result.append(nodes.Text(f", p {render(value, 'p')}"))
            if value.p_holm is not None:
                result.append(nodes.Text(f" (Holm {render(value, 'p-holm')})"))
        return result


class ClaimLedger(BookDirective):
    """The claim ledger: statement, the paper's number, ours with interval, rule and verdict."""

    option_spec: ClassVar = {"status": directives.unchanged}  # type: ignore[misc]

    def build(self) -> list[nodes.Node]:
        wanted = self.options.get("status")
        rows = [self._row(row) for row in self.judged() if wanted in (None, row.claim.status)]
        caption = f"Claims of the paper against this book at profile {self.config.igsp_profile}."
        headings = ["Claim", "Paper", f"Here ({self.config.igsp_profile})", "Verdict"]
        return [table(headings, rows, caption, classes="igsp-ledger")]

    def _row(self, row: ledger.Judged) -> list[Cell]:
        statement = nodes.inline("", "", *self.inline(row.claim.statement), ids=[f"claim-{row.claim.id}"])
        paper = [*self.inline(row.claim.paper), nodes.Text(f" [{row.claim.locator}]")]
        verdict = [verdict_badge(row.verdict), nodes.Text(f" {row.verdict.reason}.")]
        return [statement, paper, self.ours(row), verdict]


class ClaimDetails(BookDirective):
    """For each claim: setting, rule and notes, as a definition list."""

    def build(self) -> list[nodes.Node]:
        items: list[tuple[str, Cell]] = []
        for row in ledger.claims():
            text = f"{row.statement} *Paper:* {row.setting}. *Rule:* {rule_text(row.rule)}. {row.note}"
            items.append((row.title, self.inline(text)))
        return [definitions(items, "igsp-claims")]


def rule_text(rule: Mapping[str, Any]) -> str:
    """A rule of `claims.yaml` in words."""
    words = {
        "sign": "holds when the whole interval lies {side} zero",
        "greater": "holds when the whole interval lies above {than}",
        "ordered": "holds when `{smaller}` lies below `{larger}`, with intervals apart where both have one",
        "opposite": "holds when the first interval lies above zero and one of the others below",
        "within": "holds when the value lies within {by} of {of}",
    }
    text = words[rule["kind"]].format(**{"side": "above" if rule.get("expect") == "+" else "below", **rule})
    return text + (f"; decided only at profile {' or '.join(rule['profiles'])}" if rule.get("profiles") else "")


class Findings(BookDirective):
    """One line per claim of the abstract: verdict, statement, our number."""

    def build(self) -> list[nodes.Node]:
        result = nodes.bullet_list(classes=["igsp-findings"])
        for row in self.judged():
            if row.claim.status != "primary":
                continue
            content = [verdict_badge(row.verdict), nodes.Text(" "), *self.inline(row.claim.statement),
                       nodes.Text(" Paper: "), *self.inline(row.claim.paper), nodes.Text(". Here: "), *self.ours(row)]
            result += nodes.list_item("", nodes.paragraph("", "", *content))
        return [result]


class TradeoffFigure(BookDirective):
    """The figure of the first page: calibration perplexity against retention per dimension, beside the paper's."""

    has_content = True
    option_spec: ClassVar = {"name": directives.unchanged}  # type: ignore[misc]

    def build(self) -> list[nodes.Node]:
        values = published(self.env)
        claimed = {row.ours[0]: row.number for row in ledger.claims() if row.number is not None}
        keys = {name: f"spearman/calibration_perplexity/{name}" for name in DIMENSIONS}
        rows = [drawings.Row(name, look_up(values, key), claimed.get(key)) for name, key in keys.items()]
        picture = nodes.raw("", drawings.tradeoff(rows, catalog("palette")["dimensions"]), format="html")
        caption = nodes.caption("", "", *self.inline(" ".join(self.content)))
        figure = nodes.figure("", picture, caption, classes=["igsp-figure"])
        self.add_name(figure)
        return [figure]


class ClaimsThatDiffer(BookDirective):
    """A section per claim that does not hold at the shown profile, with the likely reasons."""

    def build(self) -> list[nodes.Node]:
        rows = [row for row in self.judged() if row.verdict.status != ledger.HOLDS]
        if not rows:
            return [nodes.paragraph("", "Every claim of the ledger holds at the profile shown here.")]
        result: list[nodes.Node] = []
        for row in rows:
            section = nodes.section("", nodes.title("", row.claim.title), ids=[f"why-{row.claim.id}"])
            section += nodes.paragraph("", "", *self.inline(row.claim.statement), nodes.Text(" "),
                                       verdict_badge(row.verdict), nodes.Text(f" Here {row.verdict.reason}."))
            section += nodes.paragraph("", "", nodes.Text("Paper: "), *self.inline(row.claim.paper),
                                       nodes.Text(f" ({row.claim.setting}). Here: "), *self.ours(row), nodes.Text("."))
            section += nodes.paragraph("", "", *self.inline(row.claim.differs))
            result.append(section)
        return result


def runs(env: BuildEnvironment) -> list[executed.Run]:
    """The runs behind the notebook pages of the book, in page order."""
    env.metadata[env.docname]["igsp_reads_results"] = True
    names = sorted(name for name in env.found_docs if name.startswith(f"{NOTEBOOKS}/"))
    found = (executed.read_run(Path(env.doc2path(name)), name) for name in names)
    return [run for run in found if run is not None]


class NotebookDirective(BookDirective):
    """Base of the directives that speak of the notebook they stand in."""

    def this_run(self) -> executed.Run | None:
        return executed.read_run(Path(self.env.doc2path(self.env.docname)), self.env.docname)


class NotebookPanel(NotebookDirective):
    """Profile badge, parameters of this run, the command that repeats it, and links to run it elsewhere."""

    def build(self) -> list[nodes.Node]:
        run = self.this_run()
        if run is None:
            return []
        about = run.about
        head = nodes.paragraph("", "", badge(f"profile {about['profile']}", "profile"),
                               nodes.Text(f" executed in {executed.duration(run.seconds)} on {about.get('device')}. "))
        for link in self._links(about):
            head += [link, nodes.Text(" ")]
        panel = nodes.container("", head, classes=["igsp-panel"])
        if about.get("parameters"):
            rows = [[code(p["name"]), p.get("type") or "", setting(p.get("default")), setting(p.get("value")),
                     p.get("help") or ""] for p in about["parameters"]]
            headings = ["Parameter", "Type", "Default", "This run", "Meaning"]
            panel += table(headings, rows)
        panel += nodes.paragraph("", "Run it again, with all that it needs or alone:")
        commands = f"{executed.runner_command(about)}\n{executed.papermill_command(about)}"
        panel += nodes.literal_block("", commands, language="text")
        return [panel]

    def _links(self, about: Mapping[str, Any]) -> list[nodes.Node]:
        source = str(about.get("source", "")).removesuffix(".py") + ".ipynb"
        return [nodes.reference("", title, refuri=url) for title, url in launch_links(self.config, source)]


def setting(value: Any) -> nodes.Node:
    """A parameter's value; None stands for the value of the profile."""
    return nodes.Text("from the profile") if value is None else code(str(value))


def launch_links(config: Any, source: str) -> list[tuple[str, str]]:
    """Titles and addresses of the places that can run `source`; none while no repository is configured."""
    repository = config.igsp_repository.rstrip("/").removeprefix("https://github.com/")
    if not repository:
        return []
    branch = config.igsp_branch
    return [
        ("Open in Colab", f"https://colab.research.google.com/github/{repository}/blob/{branch}/{source}"),
        ("Open in Binder", f"https://mybinder.org/v2/gh/{repository}/{branch}?labpath={source}"),
    ]


class NotebookProvenance(NotebookDirective):
    """What made this page: code, model, data, device, seed, versions and time."""

    def build(self) -> list[nodes.Node]:
        run = self.this_run()
        if run is None:
            return []
        return [nodes.rubric("", "Provenance"), definitions(self._items(run), "igsp-provenance")]

    def _items(self, run: executed.Run) -> list[tuple[str, Cell]]:
        about, model = run.about, run.about.get("model") or {}
        commit: list[nodes.Node] = [code(str(about.get("commit") or "unknown"))]
        if about.get("dirty"):
            commit += [nodes.Text(" "), badge("uncommitted changes", "stale")]
        package: list[nodes.Node] = [short(about.get("package"))]
        current = current_package()
        if about.get("package") and current and about["package"] != current:
            package += [nodes.Text(" "), badge("stale: the package has changed since", "stale")]
        versions = ", ".join(f"{name} {version}" for name, version in (about.get("versions") or {}).items())
        return [
            ("Source", code(str(about.get("source")))), ("Commit", commit), ("Package source", package),
            ("Lock file", short(about.get("lock"))),
            ("Model", [nodes.Text(f"{model.get('name')} "), short(model.get("fingerprint"))]),
            ("Data", short(about.get("data"))),
            ("Device", ", ".join(str(about[name]) for name in ("device", "processor", "dtype") if about.get(name))),
            ("Seed", str(about.get("seed"))),
            ("Started", executed.moment(about.get("started"))), ("Run time", executed.duration(run.seconds)),
            ("Versions", versions or "unknown"),
        ]


def short(sha: str | None) -> nodes.Node:
    """The first 12 digits of a hash, the whole of it on hover."""
    if not sha:
        return nodes.Text("unknown")
    return nodes.abbreviation("", "", code(sha[:12]), explanation=sha)


class ExecutionStatistics(BookDirective):
    """One row per notebook: status, time, cells, device."""

    def build(self) -> list[nodes.Node]:
        found = runs(self.env)
        if not found:
            return [nodes.paragraph("", "This build holds no executed notebook.")]
        current = current_package()
        rows: list[list[Cell]] = []
        for run in found:
            fresh = current is None or run.about.get("package") in (None, current)
            status = badge("current", "holds") if fresh else badge("stale", "stale")
            rows.append([page_link(self.env, run.docname, nodes.Text(run.title)), status,
                         executed.duration(run.seconds), str(run.cells), str(run.about.get("device")),
                         executed.moment(run.about.get("started"))])
        total = executed.duration(sum(run.seconds for run in found))
        rows.append(["All notebooks", "", total, str(sum(run.cells for run in found)), "", ""])
        return [table(["Notebook", "Code", "Run time", "Code cells", "Device", "Started"], rows,
                      f"The runs behind this book, profile {self.config.igsp_profile}.")]


class SourcesTable(BookDirective):
    """The catalogue of calibration sources of the shown profile."""

    option_spec: ClassVar = {"dimension": directives.unchanged}  # type: ignore[misc]

    def build(self) -> list[nodes.Node]:
        wanted = self.options.get("dimension")
        rows = [
            [code(source.id), source.dimension.capitalize(), str(source.about), "yes" if source.generated else "no",
             str(source.licence)]
            for source in catalogue().values() if wanted in (None, source.dimension)
        ]
        return [table(["Source", "Dimension", "What it is", "Generated", "Licence"], rows,
                      f"{len(rows)} calibration sources.", classes="igsp-sources")]


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
        return [table(["Setting", "Value", "Known from", "Source or remark"], rows, f"Settings of {title}.")]


def plain(value: Any) -> str:
    """A YAML value in words: mappings as `key value` pairs, null as `none`."""
    if isinstance(value, Mapping):
        nested = any(isinstance(inner, Mapping) for inner in value.values())
        return ("; " if nested else ", ").join(f"{key} {plain(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(plain(inner) for inner in value)
    return "none" if value is None else str(value)


class ValuesTable(BookDirective):
    """Every published value of the shown profile: the full record behind the numbers in the prose."""

    def build(self) -> list[nodes.Node]:
        values = published(self.env)
        rows = [[code(key), result_nodes(self.env, key, value, "interval"), str(value.n or ""), value.label or ""]
                for key, value in sorted(values.items())]
        return [table(["Key", "Value", "n", "Label"], rows, f"Published values, profile {self.config.igsp_profile}.")]


class CliReference(BookDirective):
    """Each command of the `igsp` program with its options, as the program prints them."""

    def build(self) -> list[nodes.Node]:
        from igsp import cli

        result: list[nodes.Node] = []
        for name, parser in commands(cli._parser()):
            anchor = name.replace(" ", "-")
            section = nodes.section("", nodes.title("", "", code(name)), ids=[f"command-{anchor}"])
            parser.formatter_class = partial(argparse.HelpFormatter, width=HELP_WIDTH)  # type: ignore[assignment]
            section += nodes.literal_block("", parser.format_help().rstrip(), language="text")
            result.append(section)
        return result


def commands(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    """The leaf commands of an argument parser in their order, by full name."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        return [(parser.prog, parser)]
    return [leaf for group in groups for child in group.choices.values() for leaf in commands(child)]


class Explorer(BookDirective):
    """Choices, a drawing and a table over the stored records. Without JavaScript the table is what remains."""

    def build(self) -> list[nodes.Node]:
        self.env.metadata[self.env.docname]["igsp_reads_results"] = True
        self.env.metadata[self.env.docname]["igsp_explorer"] = True
        found = explorer.points(Store(results_folder(self.env) / self.config.igsp_profile).records())
        if not found:
            return [nodes.paragraph("", "The store of this profile holds no records, only published values.")]
        runs = dict.fromkeys(point.run for point in found)
        return [nodes.raw("", explorer.html(found), format="html"), *(self._table(run, found) for run in runs)]

    def _table(self, run: str, found: list[explorer.Point]) -> nodes.table:
        rows = [[code(p.strategy), p.kind.capitalize(), *(f"{p.retention[name]:.1f}" for name in KEPT),
                 f"{p.metrics['calibration_perplexity']:.1f}", f"{p.metrics['aggregation_4']:.3f}", str(p.draws)]
                for p in found if p.run == run]
        headings = ["Strategy", "Kind", *(name.capitalize() for name in KEPT), "Perplexity", "A4", "Draws"]
        return table(headings, rows, f"Likelihood retention in percent and two metrics: {run}.", classes="igsp-dense")


ROLES = {"result": ResultRole, "verdict": VerdictRole, "profile": ProfileRole}
DIRECTIVES = {
    "claim-ledger": ClaimLedger, "claim-details": ClaimDetails, "findings": Findings,
    "claims-that-differ": ClaimsThatDiffer, "notebook-panel": NotebookPanel,
    "notebook-provenance": NotebookProvenance, "execution-statistics": ExecutionStatistics,
    "tradeoff-figure": TradeoffFigure,
    "sources-table": SourcesTable, "values-table": ValuesTable,
    "cli-reference": CliReference, "protocol-settings": ProtocolSettings,
    "explorer": Explorer,
}
