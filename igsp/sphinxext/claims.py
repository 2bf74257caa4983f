"""Directives of the claim ledger and of the figure that carries its message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives

from igsp.assets import catalog
from igsp.sources import DIMENSIONS
from igsp.sphinxext import drawings, ledger
from igsp.sphinxext.base import BookDirective, published, result_nodes, verdict_badge
from igsp.sphinxext.tables import Cell, definitions, table
from igsp.sphinxext.values import look_up, render, signed_form


class ClaimDirective(BookDirective):
    """Base of the directives that show judged claims."""

    def judged(self) -> list[ledger.Judged]:
        """The claims on the values of this build."""
        values = published(self.env)
        return [ledger.judge(row, values, self.config.igsp_profile) for row in ledger.claims()]

    def reference(self) -> list[ledger.Judged]:
        """The claims on the values of the reference run."""
        values = published(self.env)
        return [ledger.judge_reference(row, values) for row in ledger.claims()]

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


class ClaimLedger(ClaimDirective):
    """The claim ledger: statement, the paper's number; values and verdict of the reference run and of this build."""

    option_spec: ClassVar = {"status": directives.unchanged}  # type: ignore[misc]

    def build(self) -> list[nodes.Node]:
        wanted = self.options.get("status")
        pairs = zip(self.reference(), self.judged(), strict=True)
        rows = [self._row(*pair) for pair in pairs if wanted in (None, pair[0].claim.status)]
        shown = self.config.igsp_profile
        caption = f"Claims of the paper against the reference run ({ledger.REFERENCE}) and this build ({shown})."
        headings = ["Claim", "Paper", f"Reference run ({ledger.REFERENCE})", f"This build ({shown})"]
        return [table(headings, rows, caption, classes="igsp-ledger")]

    def _row(self, reference: ledger.Judged, built: ledger.Judged) -> list[Cell]:
        claim = reference.claim
        statement = nodes.inline("", "", *self.inline(claim.statement), ids=[f"claim-{claim.id}"])
        paper = [*self.inline(claim.paper), nodes.Text(f" [{claim.locator}]")]
        return [statement, paper, self._found(reference), self._found(built)]

    def _found(self, row: ledger.Judged) -> list[nodes.Node]:
        """Verdict, the values behind it and the reason."""
        values = [*self.ours(row), nodes.Text(": ")] if row.values else []
        return [verdict_badge(row.verdict), nodes.Text(" "), *values, nodes.Text(f"{row.verdict.reason}.")]


class ClaimDetails(ClaimDirective):
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
    text += f"; at least {rule['draws']} draws" if rule.get("draws") else ""
    return text + (f"; decided only at profile {' or '.join(rule['profiles'])}" if rule.get("profiles") else "")


class Findings(ClaimDirective):
    """One line per claim of the abstract: verdict of the reference run, statement, our number."""

    def build(self) -> list[nodes.Node]:
        result = nodes.bullet_list(classes=["igsp-findings"])
        for row in self.reference():
            if row.claim.status != "primary":
                continue
            here = [nodes.Text("Here: "), *self.ours(row)] if row.values else [nodes.Text("Not measured here")]
            content = [verdict_badge(row.verdict), nodes.Text(" "), *self.inline(row.claim.statement),
                       nodes.Text(" Paper: "), *self.inline(row.claim.paper), nodes.Text(". "), *here, nodes.Text(".")]
            result += nodes.list_item("", nodes.paragraph("", "", *content))
        return [result]


class ClaimsThatDiffer(ClaimDirective):
    """A section per claim that does not hold in the reference run, with the likely reasons."""

    def build(self) -> list[nodes.Node]:
        rows = [row for row in self.reference() if row.verdict.status != ledger.HOLDS]
        if not rows:
            return [nodes.paragraph("", "Every claim of the ledger holds in the reference run.")]
        result: list[nodes.Node] = []
        for row in rows:
            section = nodes.section("", nodes.title("", row.claim.title), ids=[f"why-{row.claim.id}"])
            section += nodes.paragraph("", "", *self.inline(row.claim.statement), nodes.Text(" "),
                                       verdict_badge(row.verdict), nodes.Text(f" Here {row.verdict.reason}."))
            section += nodes.paragraph("", "", nodes.Text("Paper: "), *self.inline(row.claim.paper),
                                       nodes.Text(f" ({row.claim.setting})."))
            if row.values:
                section += nodes.paragraph("", "", nodes.Text("Here: "), *self.ours(row), nodes.Text("."))
            section += nodes.paragraph("", "", *self.inline(row.claim.differs))
            result.append(section)
        return result


class TradeoffFigure(BookDirective):
    """The figure of the first page: calibration perplexity against retention per dimension, beside the paper's."""

    has_content = True
    option_spec: ClassVar = {"name": directives.unchanged}  # type: ignore[misc]

    def build(self) -> list[nodes.Node]:
        values = published(self.env)
        claimed = {row.ours[0]: row.number for row in ledger.claims() if row.number is not None}
        keys = {name: f"spearman/calibration_perplexity/{name}" for name in DIMENSIONS}
        rows = [
            drawings.Row(name, look_up(values, f"{ledger.REFERENCE}/{key}"), claimed.get(key))
            for name, key in keys.items()
        ]
        picture = nodes.raw("", drawings.tradeoff(rows, catalog("palette")["dimensions"]), format="html")
        caption = nodes.caption("", "", *self.inline(" ".join(self.content)))
        figure = nodes.figure("", picture, caption, classes=["igsp-figure"])
        self.add_name(figure)
        return [figure]
