"""What all roles and directives share: published values as nodes, typed errors as build warnings, and the roles."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.osutil import relative_uri

from igsp.errors import IgspError, UnknownName
from igsp.study import claims as ledger
from igsp.study.values import Value, explain, look_up, read_values, render
from igsp_book.tables import badge, code

NOTEBOOKS = "book/notebooks"
VERDICT_KIND = {ledger.HOLDS: "holds", ledger.DIFFERS: "differs", ledger.UNTESTABLE: "untestable"}
PENDING, WAY_OUT = "not executed in this build", "make book runs its notebook"


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


def anchor(key: str) -> str:
    """Where a notebook page lists the published value `key`: the id of its row."""
    return f"value-{nodes.make_id(key)}"


def result_nodes(env: BuildEnvironment, key: str, value: Value, form: str) -> list[nodes.Node]:
    """A published number, linked to its row on the page of its notebook; the title becomes its hover card."""
    shown, about, docname = render(value, form), explain(key, value), f"{NOTEBOOKS}/{value.notebook}"
    if docname not in env.found_docs:
        return [nodes.abbreviation("", shown, explanation=about, classes=["igsp-number"])]
    uri = env.app.builder.get_target_uri
    page = "" if docname == env.docname else relative_uri(uri(env.docname), uri(docname))
    target = f"{page}#{anchor(key)}"
    return [nodes.reference("", shown, refuri=target, reftitle=about, internal=True, classes=["igsp-number"])]


def judged(env: BuildEnvironment, row: ledger.Claim) -> ledger.Judged:
    """A claim on the values of this build; a preview leaves open what it has not computed."""
    values = published(env)
    if env.config.igsp_preview and not values.keys() >= set(row.ours):
        return ledger.Judged(row, ledger.Verdict(PENDING, WAY_OUT))
    return ledger.judge(row, values, env.config.igsp_profile)


class ResultRole(SphinxRole):
    """`` {result}`key` `` or `` {result}`key:format` ``; the formats are `values.FORMATS`.

    A preview shows a placeholder for what it has not computed; the reference run's values are always there.
    """

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        key, _, form = self.text.partition(":")
        values = published(self.env)
        if self.config.igsp_preview and key not in values and not key.startswith(f"{ledger.REFERENCE}/"):
            about = {"explanation": f"{key}: {PENDING}, {WAY_OUT}", "classes": ["igsp-badge", "igsp-stale"]}
            return [nodes.abbreviation("", "not executed", **about)], []
        try:
            return result_nodes(self.env, key, look_up(values, key), form or "value"), []
        except IgspError as error:
            return _refused(self, error)


class VerdictRole(SphinxRole):
    """`` {verdict}`claim-id` ``: the badge that the ledger gives to a claim in this build.

    `` {verdict}`claim-id:SparseGPT` ``: in the reference run under that method.
    """

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        name, _, method = self.text.partition(":")
        try:
            claim = ledger.claim(name)
            if not method:
                return [verdict_badge(judged(self.env, claim).verdict)], []
            runs = ledger.judge_runs(claim, published(self.env))
            if method not in runs:
                raise UnknownName("method", method, runs)
            return [verdict_badge(runs[method].verdict)], []
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
    return badge(verdict.status, VERDICT_KIND.get(verdict.status, "stale"))


class BookDirective(SphinxDirective):
    """Turns the package's typed errors into build warnings that name the directive."""

    def run(self) -> list[nodes.Node]:
        try:
            return self.build()
        except IgspError as error:
            return [self.state_machine.reporter.warning(f"{self.name}: {error}", line=self.lineno)]

    @abstractmethod
    def build(self) -> list[nodes.Node]:
        """The nodes that stand where the directive stood; may raise the package's typed errors."""

    def inline(self, text: str) -> list[nodes.Node]:
        """`text` read as Markdown, without a paragraph round it."""
        found, messages = self.state.inline_text(text, self.lineno)
        return [*found, *messages]
