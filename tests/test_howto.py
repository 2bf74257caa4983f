"""The records that the how-to pages show: an advice, and a newcomer's session."""

from __future__ import annotations

import json
from pathlib import Path

from test_sphinxext import build, folder  # noqa: F401, the fixture

from igsp.advise import Advice, Trial
from igsp.scoring.retention import Estimate


def made() -> Advice:
    uniform, best = {"c4": 0.5, "gsm8k": 0.5}, {"c4": 0.25, "gsm8k": 0.75}
    trials = tuple(Trial(w, {"general": 60 + 8 * w["c4"], "math": 50 + 8 * w["gsm8k"]}, 50 + 8 * w["gsm8k"],
                         Estimate(8 * w["gsm8k"] - 4, 0.0, 3.0)) for w in (uniform, {"c4": 1.0, "gsm8k": 0.0}, best))
    compared = {name: {"general": Estimate(62.0, 61.0, 63.0), "math": Estimate(54.5, 54.0, 55.0)}
                for name in ("optimised", "uniform")}
    gain = {"general": Estimate(-2.0, -3.0, -1.0), "math": Estimate(2.0, 1.0, 3.0), "total": Estimate(2.0, 1.0, 3.0)}
    about = {"model": "tiny", "method": "wanda", "sparsity": 0.6, "n": 4, "seqlen": 32, "suite": "small", "draws": 3}
    return Advice(best, best, True, gain, 0.5, compared, {"math": 1.0}, trials, about)


def test_a_record_that_is_there_is_shown_and_one_that_is_not_leaves_no_trace(folder: Path) -> None:  # noqa: F811
    results = folder / "source" / "book" / "results"
    for name, content in {"advice/tiny.json": made().to_json(), "advice/spoilt.json": "{}",
                          "benchmarks/newcomer.json": json.dumps({
                              "machine": {"processor": "abacus", "cores": 2, "threads": 1, "torch": "2"},
                              "note": "Full cache.", "session": [
                                  {"command": "igsp prune --out x", "output": "60.0 % of it\n", "seconds": 31.6},
                                  {"command": "python write.py", "output": "Once upon", "seconds": 8.0}]})}.items():
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text(content)
    run = build(folder, "```{advice} tiny\n```\n\n```{advice} nowhere\n```\n\n```{transcript} newcomer\n```\n\n"
                        "```{transcript} nowhere\n```")
    assert run.returncode == 0, run.stderr
    page = (folder / "out" / "index.html").read_text(encoding="utf8")
    assert "<strong>Use the optimised mix: on other items it beats the uniform one by 2.0 (1.0 to 3.0)" in page
    assert page.count("data:image/png;base64,") == 1 and 'alt="3 mixes: ' in page
    assert "54.5 (54.0 to 55.0)" in page and "Noise floor: 0.5 points" in page and "nowhere" not in page
    assert "$ igsp prune --out x\n60.0 % of it\n# 32 s" in page and "40 seconds in all; 2 cores (abacus)" in page
    assert "no advice.json" in build(folder, "```{advice} spoilt\n```").stderr
