"""Directives of the claim ledger and of the figure that carries its message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives

from igsp.assets import catalog
from igsp.study import claims as ledger
from igsp.study.values import look_up, render, signed_form
from igsp.text.catalogue import DIMENSIONS
from igsp_book import drawings
from igsp_book.base import BookDirective, judged, published, result_nodes, verdict_badge
from igsp_book.tables import Cell, definitions, table


class ClaimDirective(BookDirective):
    """Base of the directives that show judged claims."""

    def judged(self) -> list[ledger.Judged]:
        """The claims on the values of this build."""
        return [judged(self.env, row) for row in ledger.claims()]

    def reference(self) -> list[tuple[ledger.Claim, dict[str, ledger.Judged]]]:
        """The claims with their verdicts on the values of the reference run, by pruning method."""
        values = published(self.env)
        return [(row, ledger.judge_runs(row, values)) for row in ledger.claims()]

    def ours(self, row: ledger.Judged, tests: bool = True) -> list[nodes.Node]:
        """The values of a claim, one after another, each linked to its notebook; with their p-values if `tests`."""
        result: list[nodes.Node] = []
        for key, value in row.values.items():
            if result:
                result.append(nodes.Text("; "))
            dimension = key.rpartition("/")[2]
            if len(row.values) > 1 and dimension in DIMENSIONS:
                result.append(nodes.Text(f"{dimension.capitalize()} "))
            result += result_nodes(self.env, key, value, signed_form(key))
            if tests and value.p is not None:
                result.append(nodes.Text(f", {_p(render(value, 'p'))}"))
            if tests and value.p_holm is not None:
                result.append(nodes.Text(f" (Holm {_p(render(value, 'p-holm'))})"))
        return result

    def found(self, row: ledger.Judged, method: str = "") -> list[nodes.Node]:
        """Verdict, the values behind it, and the reason."""
        values = [*self.ours(row), nodes.Text(": ")] if row.values else []
        head = [nodes.strong("", method), nodes.Text(" ")] if method and row.values else []
        said = nodes.Text(f"{row.verdict.reason}.")
        return [*head, verdict_badge(row.verdict), nodes.Text(" "), *values, said]

    def runs(self, runs: dict[str, ledger.Judged]) -> list[nodes.paragraph]:
        """`found` of each pruning method, a paragraph each."""
        return [nodes.paragraph("", "", *self.found(row, method)) for method, row in runs.items()]


class ClaimLedger(ClaimDirective):
    """The claim ledger: statement, the paper's number; values and verdict of the reference run and of this build."""

    option_spec: ClassVar = {"status": directives.unchanged}  # type: ignore[misc]

    def build(self) -> list[nodes.Node]:
        wanted = self.options.get("status")
        pairs = zip(self.reference(), self.judged(), strict=True)
        rows = [self._row(*pair, built) for pair, built in pairs if wanted in (None, pair[0].status)]
        shown = self.config.igsp_profile
        caption = f"Claims of the paper against the reference run ({ledger.REFERENCE}) and this build ({shown})."
        headings = ["Claim", "Paper", f"Reference run ({ledger.REFERENCE})", f"This build ({shown})"]
        return [table(headings, rows, caption, classes="igsp-ledger")]

    def _row(self, claim: ledger.Claim, runs: dict[str, ledger.Judged], built: ledger.Judged) -> list[Cell]:
        statement = nodes.inline("", "", *self.inline(claim.statement), ids=[f"claim-{claim.id}"])
        paper = [*self.inline(claim.paper), nodes.Text(f" [{claim.locator}]")]
        return [statement, paper, self.runs(runs), self.found(built)]


class ClaimDetails(ClaimDirective):
    """For each claim: setting, rule and notes, as a definition list."""

    def build(self) -> list[nodes.Node]:
        items: list[tuple[str, Cell]] = []
        for row in ledger.claims():
            text = f"{row.statement} *Paper:* {row.setting}. *Rule:* {rule_text(row.rule)}. {row.note}"
            items.append((row.title, self.inline(text)))
        return [definitions(items, "igsp-claims")]


def _p(text: str) -> str:
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def rule_text(rule: Mapping[str, Any]) -> str:
    """A rule of `claims.yaml` in words."""
    words = {
        "sign": "holds when the correlation lies {side} zero, with p below 0.05 after correction for the whole table",
        "greater": "holds when the whole interval lies above {than}",
        "ordered": "holds when `{smaller}` lies below `{larger}`, with intervals apart where both have one",
        "opposite": "holds when the first correlation is positive and one of the others negative, both by corrected p",
        "within": "holds when the value lies within {by} of {of}",
    }
    text = words[rule["kind"]].format(**{"side": "above" if rule.get("expect") == "+" else "below", **rule})
    text += f"; under {' and '.join(rule['measures'])} too, where published" if rule.get("measures") else ""
    text += f"; at least {rule['draws']} draws" if rule.get("draws") else ""
    return text + (f"; decided only at profile {' or '.join(rule['profiles'])}" if rule.get("profiles") else "")


class Findings(ClaimDirective):
    """The claims of the abstract as a table: the paper's number, ours and the verdict by pruning method."""

    def build(self) -> list[nodes.Node]:
        pairs = [(claim, runs) for claim, runs in self.reference() if claim.status == "primary"]
        methods = list(dict.fromkeys(method for _, runs in pairs for method in runs if method))
        rows = []
        for claim, runs in pairs:
            found = [self.told(runs.get(method) or runs.get("")) for method in methods]
            rows.append([self.inline(claim.statement), self.inline(claim.paper), *found])
        caption = "What the abstract claims, and what the reference run measured, with 95 % intervals"
        return [table(["Claim", "Paper", *methods], rows, caption, classes="igsp-ledger")]

    def told(self, row: ledger.Judged | None) -> Cell:
        """Verdict and values of a claim under one method."""
        if row is None or not row.values:
            return "not measured"
        return [verdict_badge(row.verdict), nodes.Text(" "), *self.ours(row, tests=False)]


class ClaimsThatDiffer(ClaimDirective):
    """A section per claim that does not hold under every method of the reference run, with the likely reasons."""

    def build(self) -> list[nodes.Node]:
        result: list[nodes.Node] = []
        for claim, runs in self.reference():
            if all(row.verdict.status == ledger.HOLDS for row in runs.values()):
                continue
            section = nodes.section("", nodes.title("", claim.title), ids=[f"why-{claim.id}"])
            paper = [nodes.Text(" Paper: "), *self.inline(claim.paper), nodes.Text(f" ({claim.setting}).")]
            section += nodes.paragraph("", "", *self.inline(claim.statement), *paper)
            section += self.runs(runs)
            section += nodes.paragraph("", "", *self.inline(claim.differs))
            result.append(section)
        return result or [nodes.paragraph("", "Every claim of the ledger holds in the reference run.")]


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
