"""What a study costs: its tasks by kind, and what one of each took."""

from __future__ import annotations

from collections import Counter

from docutils import nodes

from igsp.study.engine import Pace
from igsp.study.records import Store
from igsp_book.base import BookDirective, results_folder
from igsp_book.tables import Cell, code, table


class StudyCosts(BookDirective):
    """Tasks of a profile by kind with the times of its committed records, beside the tasks of a second profile."""

    required_arguments = 2

    def build(self) -> list[nodes.Node]:
        self.env.metadata[self.env.docname]["igsp_reads_results"] = True
        return costs(Store(results_folder(self.env) / self.arguments[0]), *self.arguments)


def costs(store: Store, measured: str, planned: str) -> list[nodes.Node]:
    """The table, and what it says of a run of the second profile."""
    from igsp.study.study import Study  # imports torch, which takes seconds

    records = list(store.records())
    if not records:
        return [nodes.paragraph("", "This build holds no records of this profile.")]
    pace = Pace.of(records)
    counts, others = (Counter(task.kind for task in Study(p, store.root).tasks()) for p in (measured, planned))
    rows: list[list[Cell]] = []
    for kind, count in sorted(counts.items()):
        seconds = pace.typical(kind)
        times = ["-", "-"] if seconds is None else [f"{seconds:.3g}", f"{count * seconds / 3600:.2f}"]
        rows.append([code(kind), str(count), *times, str(others[kind])])
    rows.append(["all", str(counts.total()), "", f"{pace.left(counts) / 3600:.2f}", str(others.total())])
    made = Counter((r.provenance.get("processor"), r.provenance.get("threads")) for r in records)
    processor, threads = made.most_common(1)[0][0]
    scored = 1 + sum(count for kind, count in others.items() if kind.startswith("cell"))
    size = sum(store.path(record.name).stat().st_size for record in records) / len(records)
    return [
        table(["Task", f"Tasks of {measured}", "Seconds of one", "Worker hours", f"Tasks of {planned}"], rows,
              f"Tasks by kind, with the median seconds on a worker ({processor}, threads: {threads}).", "igsp-dense"),
        nodes.paragraph("", f"{scored} tasks of {planned} score a model on its suite: the cells, and the dense model. "
                        f"If the suite takes half an hour, that makes {scored / 2:.1f} GPU hours, which cost "
                        f"{3 * scored / 2:.0f} at a price of 3 an hour. A record of {measured} takes "
                        f"{size / 1000:.0f} kB on average."),
    ]
