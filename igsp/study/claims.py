"""The claim ledger: what the paper claims, what was measured here, and whether the claim holds by a stated rule."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from igsp.assets import catalog
from igsp.errors import UnknownName, UsageError
from igsp.study.grid import strategies
from igsp.study.recorded import Reference, reference
from igsp.study.settings import settings
from igsp.study.values import Value, interval, look_up, signed_form

HOLDS, DIFFERS, UNTESTABLE = "holds", "differs", "not testable at this scale"
LEVEL = 0.05  # of the tests behind a verdict, after correction for their number
PLACES = {1: "lies above", -1: "lies below", 0: "includes"}
REFERENCE = "small"  # profile of the committed records
RUNS = {"SparseGPT": REFERENCE, "Wanda": f"{REFERENCE}/wanda"}  # its published values: the claim's key behind this


@dataclass(frozen=True)
class Claim:
    """One row of `catalog/claims.yaml`; the fields are explained at the head of that file."""

    id: str
    title: str
    statement: str
    locator: str
    status: str
    paper: str
    setting: str
    ours: tuple[str, ...]
    rule: Mapping[str, Any]
    note: str
    differs: str
    number: float | None = None


@dataclass(frozen=True)
class Verdict:
    """`status` is one of `HOLDS`, `DIFFERS`, `UNTESTABLE`; `reason` says in one sentence why."""

    status: str
    reason: str


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict and the published values it was decided on."""

    claim: Claim
    verdict: Verdict
    values: Mapping[str, Value] = field(default_factory=dict)


def claims() -> list[Claim]:
    """The claims in the order of the catalogue.

    Raises:
        UsageError: a row of `claims.yaml` with a missing or an unknown field, or two rows of one id.
    """
    rows = []
    for entry in catalog("claims"):
        try:
            rows.append(Claim(**{**entry, "ours": tuple(entry["ours"])}))
        except (TypeError, KeyError) as error:
            raise UsageError(f"claims.yaml, row '{entry.get('id', '?')}': {error}") from None
    ids = [row.id for row in rows]
    if len(set(ids)) != len(ids):
        raise UsageError("claims.yaml: two rows have the same id")
    return rows


def claim(claim_id: str) -> Claim:
    """The claim of that id; raises `UnknownName` with the nearest ids."""
    found = {row.id: row for row in claims()}
    if claim_id not in found:
        raise UnknownName("claim", claim_id, found)
    return found[claim_id]


def judge(claim: Claim, values: Mapping[str, Value], profile: str) -> Judged:
    """Decides `claim` by its rule on the published `values`.

    A value without an interval is judged by itself, and the reason says so. An interval that holds both outcomes
    gives "not testable at this scale", never a verdict.

    Raises:
        UnknownName: a key of the claim is not published, or the kind of rule is unknown.
    """
    used = {key: look_up(values, key) for key in claim.ours}
    behind = [by_measure(key, measure) for measure in claim.rule.get("measures", ()) for key in claim.ours]
    used |= {key: values[key] for key in behind if key in values}
    kind = claim.rule["kind"]
    if kind not in RULES:
        raise UnknownName("rule", kind, RULES)
    allowed = claim.rule.get("profiles")
    if allowed and profile not in allowed:
        reason = f"decided only at profile {' or '.join(allowed)}"
        return Judged(claim, Verdict(UNTESTABLE, reason), used)
    needed = claim.rule.get("draws", 0)
    fewest = min((value.draws for value in used.values() if value.draws is not None), default=needed)
    if fewest < needed:
        reason = f"it rests on {fewest} of the {needed} draws that tell an effect from the luck of the draw"
        return Judged(claim, Verdict(UNTESTABLE, reason), used)
    return Judged(claim, RULES[kind](claim.rule, used), used)


def judge_reference(claim: Claim, values: Mapping[str, Value], run: str = REFERENCE) -> Judged:
    """Decides `claim` on values of the reference run, whose keys are the claim's own behind `<run>/`.

    What the reference run did not measure gives "not testable at this scale".
    """
    recorded = {key.removeprefix(f"{run}/"): value for key, value in values.items() if key.startswith(f"{run}/")}
    if not recorded.keys() >= set(claim.ours):
        return Judged(claim, Verdict(UNTESTABLE, "the reference run has not measured it"))
    found = judge(claim, recorded, REFERENCE)
    return Judged(claim, found.verdict, {f"{run}/{key}": value for key, value in found.values.items()})


def judge_runs(claim: Claim, values: Mapping[str, Value]) -> dict[str, Judged]:
    """`judge_reference` by pruning method: the first of `RUNS`, and the others where they have measured the claim."""
    found = {name: judge_reference(claim, values, run) for name, run in RUNS.items()}
    return {name: row for name, row in found.items() if row.values or name == next(iter(RUNS))}


def for_machines(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    """The ledger for machines: an entry per claim and pruning method of the reference run, as plain JSON.

    Each holds the claim, the paper's value, the values behind the verdict with their intervals, rule and verdict, the
    scale beside the paper's, the records (their names in the store), what they cost in worker seconds, and the command
    that computes them again where they are missing.
    """
    run, paper = reference(REFERENCE), settings("paper")
    s = run.settings
    scale = {"model": s.model, "paper_model": paper.model, "sparsity": s.sparsity, "tokens": s.n * s.seqlen,
             "tokens_of_paper_profile": paper.n * paper.seqlen}
    entries = []
    for row in claims():
        for name, judged in judge_runs(row, values).items():
            used = {name for key, value in judged.values.items() for name in _strategies(run, key, value)}
            cells = [r for r in run.at(name.lower()) if r.strategy in used]
            entries.append({
                "id": row.id, "claim": row.statement, "status": row.status, "locator": row.locator, "paper": row.paper,
                "setting": row.setting, "method": name, "rule": dict(row.rule), "verdict": judged.verdict.status,
                "reason": judged.verdict.reason, "scale": scale, "records": [r.record.name for r in cells],
                "worker_seconds": round(sum(sum(r.record.metrics["seconds"].values()) for r in cells)),
                "command": f"igsp study run --profile {REFERENCE}",
                "values": {k: {f: x for f, x in vars(v).items() if x is not None} for k, v in judged.values.items()},
            })
    return entries


def _strategies(run: Reference, key: str, value: Value) -> list[str]:
    """The strategies whose cells are behind a published value."""
    names, parts = strategies(run.settings), re.split(r"/|-minus-", key)
    if "spearman" in parts or "spread" in parts:
        return list(run.settings.sources)
    return ["igsp", "pool-random"] if "a4" in parts else [n for n in (*parts, value.label) if n in names]


def side_by_side(runs: Mapping[str, Mapping[str, Value]]) -> list[dict[str, str]]:
    """A row per claim that some of the runs measured: the values of each run with its verdict."""
    rows = []
    for row in claims():
        found = {name: judge(row, values, REFERENCE) for name, values in runs.items() if values.keys() >= set(row.ours)}
        if found:
            rows.append({"claim": row.title, "paper": row.paper} | {name: _told(found.get(name)) for name in runs})
    return rows


def _told(judged: Judged | None) -> str:
    if judged is None:
        return "not measured"
    values = (interval(value, signed_form(key) == "signed-interval") for key, value in judged.values.items())
    return f"{'; '.join(values)}: {judged.verdict.status}"


def _side(value: Value, bound: float) -> int:
    """+1 if the whole interval lies above `bound`, -1 if below, 0 if it holds `bound`."""
    low = value.value if value.low is None else value.low
    high = value.value if value.high is None else value.high
    return 1 if low > bound else -1 if high < bound else 0


def _above(value: Value, bound: float, wanted: int) -> Verdict:
    what = "interval" if value.has_interval else "value (no interval was computed)"
    side = _side(value, bound)
    reason = f"the {what} {PLACES[side]} {bound:g}"
    if side and value.noise is not None and abs(value.value - bound) <= 2 * value.noise:
        return Verdict(UNTESTABLE, f"{reason}, but not by more than twice what the luck of the draw does")
    return Verdict(UNTESTABLE if side == 0 else HOLDS if side == wanted else DIFFERS, reason)


def _tested(value: Value) -> tuple[int, str]:
    """The sign of a correlation, and why: by its Holm-corrected p where there is one, else by the interval."""
    if value.p_holm is None:
        side = _side(value, 0.0)
        return side, f"the interval {PLACES[side]} 0"
    side = int(value.value > 0) - int(value.value < 0) if value.p_holm < LEVEL else 0
    found = f"{'below' if side else 'not below'} {LEVEL:g} after correction for the number of tests"
    return side, f"p is {found}"


def _first(used: Mapping[str, Value]) -> Value:
    return next(iter(used.values()))


def _sign(rule: Mapping[str, Any], used: Mapping[str, Value]) -> Verdict:
    side, reason = _tested(_first(used))
    wanted = 1 if rule["expect"] == "+" else -1
    return Verdict(UNTESTABLE if side == 0 else HOLDS if side == wanted else DIFFERS, reason)


def _greater(rule: Mapping[str, Any], used: Mapping[str, Value]) -> Verdict:
    return _above(_first(used), float(rule["than"]), 1)


def _ordered(rule: Mapping[str, Any], used: Mapping[str, Value]) -> Verdict:
    keys = [rule["smaller"], rule["larger"]]
    found = {"likelihood": _order(*(look_up(used, key) for key in keys))}
    for measure in rule.get("measures", ()):
        if all(by_measure(key, measure) in used for key in keys):
            found[measure] = _order(*(used[by_measure(key, measure)] for key in keys))
    if len({verdict.status for verdict in found.values()}) == 1:
        return found["likelihood"]
    told = (f"{verdict.status} by {measure} ({verdict.reason})" for measure, verdict in found.items())
    return Verdict(UNTESTABLE, "it depends on the measure: " + "; ".join(told))


def _order(small: Value, large: Value) -> Verdict:
    if small.has_interval and large.has_interval and small.high > large.low and large.high > small.low:  # type: ignore[operator]
        return Verdict(UNTESTABLE, "the two intervals overlap")
    if small.value == large.value:
        return Verdict(UNTESTABLE, "the two values are equal")
    apart = "the two intervals are apart" if small.has_interval and large.has_interval else "compared as plain values"
    return Verdict(HOLDS if small.value < large.value else DIFFERS, apart)


def by_measure(key: str, measure: str) -> str:
    """The key of the same quantity under another measure: `spread/code` becomes `spread/knowledge/code`."""
    first, _, rest = key.partition("/")
    return f"{first}/{measure}/{rest}"


def _opposite(rule: Mapping[str, Any], used: Mapping[str, Value]) -> Verdict:
    positive, _ = _tested(look_up(used, rule["positive"]))
    negative = [_tested(look_up(used, key))[0] for key in rule["negative"]]
    if positive == 1 and -1 in negative:
        return Verdict(HOLDS, "one correlation is positive and another negative for sure")
    if positive == -1 or all(side == 1 for side in negative):
        return Verdict(DIFFERS, "the signs are not the two that the claim needs")
    return Verdict(UNTESTABLE, "a correlation that the claim needs on one side of zero may lie on either")


def _within(rule: Mapping[str, Any], used: Mapping[str, Value]) -> Verdict:
    value, target, by = _first(used).value, float(rule["of"]), float(rule["by"])
    near = abs(value - target) <= by
    return Verdict(HOLDS if near else DIFFERS, f"{'within' if near else 'more than'} {by:g} of {target:g}")


RULES: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Value]], Verdict]] = {
    "sign": _sign, "greater": _greater, "ordered": _ordered, "opposite": _opposite, "within": _within,
}
