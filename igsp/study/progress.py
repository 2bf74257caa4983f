"""What is told of a study that is computed: the state of its tasks, the time they take, what runs just now."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from igsp.provenance import duration
from igsp.study.records import Record, name_of

if TYPE_CHECKING:
    from igsp.study.study import Study, Task

SHOWN = 8  # lines of running tasks on a terminal


@dataclass
class Pace:
    """What tasks took, seconds by kind, for what is still to come."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def typical(self, kind: str) -> float | None:
        """Median seconds of one task (a task that lay paused moves a mean); None where none was ever recorded."""
        known = self.seconds.get(kind)
        return statistics.median(known) if known else None

    def left(self, kinds: Mapping[str, int]) -> float:
        """Seconds of work on one worker; kinds without a recorded time count as nothing."""
        return sum(count * (self.typical(kind) or 0.0) for kind, count in kinds.items())

    @classmethod
    def of(cls, records: Iterable[Record]) -> Pace:
        """The pace that stored records tell."""
        pace = cls()
        for record in records:
            kind = " ".join(filter(None, map(record.spec.get, ("stage", "method", "kind"))))
            pace.seconds[kind].append(record.seconds)
        return pace


class Progress:
    """A bar and a line per running task on a terminal; elsewhere a plain line on news, and one a minute."""

    def __init__(self, total: int, done: int, slots: int, shown: bool) -> None:
        self.shown, self.terminal, self.slots = shown, shown and sys.stderr.isatty(), slots
        layout = "{desc} {percentage:3.0f}% |{bar:30}| {n_fmt}/{total_fmt} {postfix}"
        self.bar = tqdm(total=total, initial=done, desc="tasks", bar_format=layout, disable=not self.terminal)
        self.lines = [
            tqdm(bar_format="  {desc}", position=i + 1, leave=False, disable=not self.terminal)
            for i in range(min(slots, SHOWN))
        ]
        self.total, self.before, self.begun = total, done, time.monotonic()
        self.news, self.due, self.silent = f"starting {slots} workers", 0.0, 0.0

    def show(
        self, left: Mapping[str, int], running: Sequence[tuple[Task, float]], failed: int, pace: Pace
    ) -> None:
        """Shows the state if it is time to. `left`: tasks by kind; `running`: since when, by `time.monotonic`."""
        now, done = time.monotonic(), self.total - sum(left.values())
        if not self.shown or (running and now < self.due):
            return
        self.due = now + (0.2 if self.terminal else 1.0)
        parts = [f"{len(running)} running"]
        if done > self.before:
            parts += [f"{60 * (done - self.before) / max(now - self.begun, 1e-3):.1f} a minute"]
        parts += [f"{failed} failed"] if failed else []
        if all(kind in pace.seconds for kind, count in left.items() if count):
            spent = sum(min(now - since, pace.typical(task.kind) or 0.0) for task, since in running)
            parts += [f"{duration((pace.left(left) - spent) / self.slots)} left"]
        if self.terminal:
            self.bar.n, self.bar.postfix = done, ", ".join(parts)
            self.bar.refresh()
            texts = [f"{task}: {duration(now - since)}" for task, since in running]
            for line, text in zip(self.lines, [*texts, *[""] * SHOWN], strict=False):
                line.set_description_str(text)
        elif self.news or now > self.silent:
            self.silent = now + 60
            self.say(f"{done}/{self.total}: {'; '.join(filter(None, (self.news, ', '.join(parts))))}")
        self.news = ""

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.shown:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        for line in (*self.lines, self.bar):
            line.close()


def survey(study: Study, tasks: Iterable[Task]) -> list[dict[str, Any]]:
    """State of tasks: stage, strategy, draw, method, sparsity; `state` (done, running, failed, left) and its reason."""
    failures, rows = study.store.failures(), []
    for task in tasks:
        state, reason = "done" if study.done(task) else "left", ""
        with suppress(KeyError):  # it waits for its calibration set: no specification yet
            if state == "left":
                name = name_of(study.specification(task))
                reason = failures.get(name, "")
                state = "running" if study.store.running(name) else "failed" if reason else "left"
        method, sparsity = (task.cell.method, task.cell.sparsity) if task.cell else (None, None)
        rows.append({"task": str(task), "kind": task.kind, "stage": task.stage, "strategy": task.strategy,
                     "draw": task.draw, "method": method, "sparsity": sparsity, "state": state, "reason": reason})
    return rows


def plan(study: Study, tasks: Iterable[Task], times: Iterable[Record] = ()) -> list[dict[str, Any]]:
    """One row per kind of task: how many, how many in each state, median seconds of one and hours left on one worker.

    `times`: records of another study, whose times serve where this one has none.
    """
    pace, lent = Pace.of(study.store.records()), Pace.of(times)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in survey(study, tasks):
        counts[row["kind"]][row["state"]] += 1
    rows = []
    for kind, states in counts.items():
        left, seconds = states.total() - states["done"], pace.typical(kind)
        seconds = lent.typical(kind) if seconds is None else seconds
        rows.append({
            "task": kind, "count": states.total(), **{s: states[s] for s in ("done", "running", "failed", "left")},
            "seconds": seconds and round(seconds, 1),
            "hours": 0.0 if not left else seconds and round(seconds * left / 3600, 2),
        })
    return rows
