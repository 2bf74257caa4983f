"""The grid of a study: its strategies, the cells to prune and score, and the tasks behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from igsp.errors import UnknownName
from igsp.pruning.solvers import parse_pattern
from igsp.study.settings import GROUPS, Part, Settings


@dataclass(frozen=True)
class Strategy:
    """A way to choose calibration text: `kind` is source, mix, protocol or selection (from the pool)."""

    name: str
    kind: str
    detail: dict[str, Any]


def strategies(s: Settings) -> dict[str, Strategy]:
    """Every strategy of the settings by name: the sources, `uniform`, `all-sources`, the protocols, the selections."""
    every = [Strategy(source, "source", {"source": source}) for source in s.sources]
    every += [Strategy("uniform", "mix", {"weights": dict(s.uniform)})]
    every += [Strategy("all-sources", "mix", {"weights": {source: 1 for source in s.sources}})]
    every += [Strategy(name, "protocol", {"protocol": name, **options}) for name, options in s.protocols.items()]
    every += [Strategy(name, "selection", dict(options)) for name, options in s.selections.items()]
    return {strategy.name: strategy for strategy in every}


@dataclass(frozen=True)
class Cell:
    """One pruned model to score: calibration strategy and draw, pruning method and sparsity.

    Of a `pattern` (`2:4`), `sparsity` is the share of weights that it removes.
    """

    strategy: str
    draw: int
    method: str
    sparsity: float
    pattern: str | None = None

    @property
    def amount(self) -> str:
        """Pattern or sparsity as people write it: `2:4`, `0.6`."""
        return self.pattern or f"{self.sparsity:g}"


def cells(s: Settings) -> list[Cell]:
    """The grid of the settings, part by part, draw by draw, each cell once.

    A part names `strategies` (or groups of them: sources, mixes, protocols, selections), `methods`, `sparsities`,
    `patterns` and `draws`; what it leaves out is every strategy, and the method, amount and draws of the profile.
    """
    known = strategies(s)
    found: dict[Cell, None] = {}
    for part in s.grid:
        asked = GROUPS if part.strategies is None else part.strategies
        names = [n for n, v in known.items() if n in asked or v.kind in {GROUPS[a] for a in asked if a in GROUPS}]
        for draw in range(part.draws or s.draws):
            for sparsity, pattern in _amounts(s, part):
                for name in names:
                    for method in part.methods or [s.method]:
                        found[Cell(name, draw, method, sparsity, pattern)] = None
    return list(found)


def _amounts(s: Settings, part: Part) -> list[tuple[float, str | None]]:
    """Sparsity and pattern of a part's cells: those it names, else those of the profile."""
    if part.sparsities is None and part.patterns is None:
        return [(s.sparsity, s.pattern)]
    named = [(parsed.sparsity, text) for text in part.patterns or () if (parsed := parse_pattern(text))]
    return [*((sparsity, None) for sparsity in part.sparsities or ()), *named]


def select(s: Settings, only: Sequence[str] = (), methods: Sequence[str] = ()) -> list[Cell]:
    """Cells of the grid that a filter lets through.

    Args:
        only: `key=value` conditions joined by commas; a cell has to meet all those of one of them. Keys: strategy,
            source, kind, draw, method, sparsity, pattern.
        methods: pruning methods; default all.

    Raises:
        UnknownName: a key that cells do not have, or a value that no cell of the grid has.
    """
    known, every = strategies(s), cells(s)

    def facts(cell: Cell) -> dict[str, str]:
        kind = known[cell.strategy].kind
        about = asdict(cell) | {"kind": kind} | ({"source": cell.strategy} if kind == "source" else {})
        return {key: str(value) for key, value in about.items() if value is not None}

    told = [facts(cell) for cell in every]
    wanted = [dict(part.partition("=")[::2] for part in text.split(",")) for text in only]
    for key, value in [*(item for one in wanted for item in one.items()), *(("method", m) for m in methods)]:
        values = {one[key] for one in told if key in one}
        if not values:
            raise UnknownName("key of --only", key, {*told[0], "source"}, "(write key=value,key=value)")
        if value not in values:
            raise UnknownName(f"{key} in the grid of this profile", value, values)
    return [
        cell for cell, one in zip(every, told, strict=True)
        if (not methods or cell.method in methods) and (not wanted or any(w.items() <= one.items() for w in wanted))
    ]


@dataclass(frozen=True)
class Task:
    """What is computed once and recorded. `stage` is dense, pool, calibration, metrics or cell.

    Attributes:
        form: of a calibration set the kind of its strategy.
    """

    stage: str
    strategy: str = ""
    draw: int = 0
    cell: Cell | None = None
    form: str = field(default="", compare=False)

    @property
    def kind(self) -> str:
        """Tasks of one kind take about the same time: the stage, a cell's pruning method, the form of a set."""
        return f"{self.stage} {self.cell.method if self.cell else self.form}".rstrip()

    def __str__(self) -> str:
        if self.stage == "dense":
            return self.stage
        end = f" {self.cell.method} {self.cell.amount}" if self.cell else ""
        return " ".join(filter(None, (self.stage, self.strategy, str(self.draw)))) + end


def tasks(s: Settings, wanted: Sequence[Cell]) -> dict[Task, tuple[Task, ...]]:
    """The tasks behind cells, each with the tasks that it has to wait for.

    In a good order: long texts that a model writes first, everything after what it waits for, and the short tasks
    that nothing waits for last, where they fill the time in which the other workers end their last cells.
    """
    known = strategies(s)
    first: dict[Task, tuple[Task, ...]] = {Task("dense", ""): ()}
    then: dict[Task, tuple[Task, ...]] = {}
    last: dict[Task, tuple[Task, ...]] = {}
    for cell in wanted:
        kind = known[cell.strategy].kind
        made = Task("calibration", cell.strategy, cell.draw, form=kind)
        pool = (Task("pool", "", cell.draw),) if kind == "selection" else ()
        (then if kind in ("source", "mix") else first).update({**dict.fromkeys(pool, ()), made: pool})
        last[Task("metrics", cell.strategy, cell.draw)] = (made,)
        then[Task("cell", cell.strategy, cell.draw, cell)] = (made,)
    return first | then | last
