"""Records shown on the how-to pages: an advice, and a newcomer's session. A record that is missing shows nothing."""

from __future__ import annotations

import base64
import io
import json
import re
from abc import abstractmethod
from pathlib import Path

from docutils import nodes

from igsp.scoring.retention import Estimate
from igsp.study.values import Value, interval, number
from igsp_book.base import BookDirective, results_folder
from igsp_book.tables import code, table, titled


class RecordShown(BookDirective):
    """Shows one JSON file of a folder under `book/results`, named by the argument."""

    required_arguments = 1
    folder = ""

    def build(self) -> list[nodes.Node]:
        self.env.metadata[self.env.docname]["igsp_reads_results"] = True
        path = results_folder(self.env) / self.folder / f"{self.arguments[0]}.json"
        return self.shown(path) if path.exists() else []

    @abstractmethod
    def shown(self, path: Path) -> list[nodes.Node]:
        """The nodes that show the file."""


class AdviceShown(RecordShown):
    """What `igsp advise` answered: the verdict, both mixes on items the search did not see, and the picture."""

    folder = "advice"

    def shown(self, path: Path) -> list[nodes.Node]:
        import matplotlib.pyplot as plt

        from igsp.advise import Advice, picture  # imports torch, which takes seconds

        advice = Advice.from_json(path.read_text(encoding="utf8"))
        about, best, start = advice.settings, advice.best, advice.trials[0].weights
        asked = ", ".join(f"{name.capitalize()} {100 * weight:.0f} %" for name, weight in advice.keep.items())
        shares = [[code(name), f"{100 * best[name]:.1f}", f"{100 * start[name]:.1f}"] for name in best]
        kept = [[name.capitalize(), *(told(found[name]) for found in advice.compared.values()),
                 told(advice.gain[name], signed=True)] for name in advice.compared["uniform"]]
        kept.append(["Asked", "", "", told(advice.gain["total"], signed=True)])
        floor = "unknown" if advice.noise_floor is None else f"{number(advice.noise_floor, 1)} points"
        caption = (f"Retention in percent on the items that the search did not see, {about['draws']} draws each; "
                   f"difference in points, paired. Noise floor: {floor}.")
        verdict = re.sub(r"\[(\S+), (\S+)\]", r"(\1 to \2)", advice.verdict)
        buffer = io.BytesIO()
        figure = picture(advice)
        figure.suptitle("")  # the verdict stands above
        figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        alt = f"{len(advice.trials)} mixes: retention by share of a dimension's own sources, and the price of it."
        source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        drawing = nodes.raw("", f'<img src="{source}" alt="{alt} {verdict}" style="width:100%">', format="html")
        legend = "Small points are the mixes of the search, the two large ones the confirmed ones, with intervals."
        drawing = nodes.figure("", drawing, nodes.caption("", legend), classes=["igsp-figure"])
        amount = about.get("pattern") or f"{100 * about['sparsity']:g} %"
        setting = titled(
            f"An answer on record: {about['model']}, {about['method']} at {amount} sparsity, "
            f"{about['n']} windows of {about['seqlen']} tokens, suite {about['suite']}; asked for: {asked}. "
            f"{len(advice.trials)} mixes were tried.")
        return [
            nodes.paragraph("", setting), nodes.paragraph("", "", nodes.strong("", verdict)),
            table(["Source", "Best found, %", "Uniform, %"], shares, "The two mixes that were confirmed."),
            table(["Dimension", "Best found", "Uniform", "Difference"], kept, caption), drawing,
        ]


def told(value: Estimate, signed: bool = False) -> str:
    return interval(Value(value.value, value.low, value.high, digits=1), signed)


class Transcript(RecordShown):
    """A recorded session: each command with what it printed and the seconds it took, then the machine."""

    folder = "benchmarks"

    def shown(self, path: Path) -> list[nodes.Node]:
        record = json.loads(path.read_text(encoding="utf8"))
        text = "\n\n".join(
            "\n".join(filter(None, [f"$ {step['command']}", step["output"].rstrip(), f"# {step['seconds']:.0f} s"]))
            for step in record["session"])
        where = record["machine"]
        total = sum(step["seconds"] for step in record["session"])
        note = (f"{total:.0f} seconds in all; {where['cores']} cores ({where['processor']}), threads in use: "
                f"{where['threads']}, torch {where['torch']}. {record['note']}")
        return [nodes.literal_block("", text, language="text", classes=["igsp-wrap"]), nodes.paragraph("", note)]
