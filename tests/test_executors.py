"""A grid on many workers: every cell once, the same numbers, whatever dies in between."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from light import (
    NAMES,
    Grid,
    Inline,
    LightStudy,
    OnPaper,
    Simulated,
    dies,
    finish,
    log,
    maker,
    numbers,
    run,
    twice,
    wait_for_cells,
)
from toy import ToyStudy, ToyTexts

from igsp.cli import main
from igsp.errors import IgspError
from igsp.study import engine
from igsp.study.progress import Pace, plan, survey
from igsp.study.records import Store, name_of
from igsp.study.study import Task
from igsp.study.workers import THREADS, LocalPool


def tasks_of(study, names=NAMES):
    return study.tasks(study.select([f"strategy={name}" for name in names]))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Numbers of a run in one process without workers."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert finish(root).failed == {}
    return numbers(root)


def test_many_workers_even_where_one_is_killed_compute_every_task_once_with_the_same_numbers(tmp_path, undisturbed):
    summary = run(tmp_path, 2, behave={"stdlib": "die once"})
    assert (tmp_path / "died").exists()
    assert (summary.computed, summary.done, summary.failed) == (summary.total, summary.total, {})
    assert log(tmp_path) == sorted(NAMES) and numbers(tmp_path) == undisturbed
    again = finish(tmp_path)
    assert (again.computed, again.done) == (0, again.total)


def test_a_cell_that_always_fails_or_kills_its_worker_stops_no_other(tmp_path, undisturbed):
    study = LightStudy(str(tmp_path))
    summary = run(tmp_path, 2, behave={"stdlib": "fail", "uniform": "die"})
    assert set(summary.failed) == {"cell stdlib", "cell uniform"}
    assert summary.failed["cell stdlib"].startswith("RuntimeError: a bad cell (light.py:")
    assert "was killed (SIGKILL" in summary.failed["cell uniform"]
    assert log(tmp_path) == ["igsp", "recipes"]
    states = {row["task"]: (row["state"], row["reason"]) for row in survey(study, study.tasks())}
    assert states["cell stdlib"] == ("failed", summary.failed["cell stdlib"])
    assert Counter(state for state, _ in states.values()) == {"done": summary.total - 2, "failed": 2}
    assert finish(tmp_path).computed == 2  # mended: only those two
    assert numbers(tmp_path) == undisturbed and not study.store.failures()


class NoSet(ToyTexts):
    def _set(self, strategy, draw):
        raise IgspError("no text")


def test_what_waits_for_a_failed_task_is_left_and_counted(tmp_path):
    study = ToyStudy(store=str(tmp_path), texts=NoSet)
    summary = engine.run(study, tasks_of(study, ["recipes"]), Inline(study), maker(tmp_path), progress=False)
    assert summary.failed == {"calibration recipes 0": "no text"} and summary.blocked == 2
    assert summary.computed == 1  # the dense scores


DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts in the background without it
sys.path.insert(0, {tests!r})
from light import run
if __name__ == "__main__":
    print(run({root!r}, {jobs}, seconds=1.0, behave={behave}).computed, flush=True)
"""


def driver(root, jobs, behave=None):
    """A driver in a process group of its own, as a shell would start it."""
    code = root.parent / f"{root.name}-driver.py"
    code.write_text(DRIVER.format(tests=str(Path(__file__).parent), root=str(root), jobs=jobs, behave=behave))
    return subprocess.Popen([sys.executable, str(code)], start_new_session=True, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def children(pid):
    """Living processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_killed_or_interrupted_is_taken_up_where_it_was(tmp_path, undisturbed, blow):
    root = tmp_path / "store"
    root.mkdir()
    first = driver(root, 2, {"igsp": 600})  # it cannot end before the blow
    wait_for_cells(root, 1)
    time.sleep(0.2)
    workers = children(first.pid)
    if blow == signal.SIGINT:
        os.killpg(first.pid, blow)  # as the terminal does: driver and workers
    else:
        first.send_signal(blow)
    _, said = first.communicate(timeout=120)
    assert first.returncode != 0 and (blow == signal.SIGKILL or "leaked" not in said)
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end, "workers outlive their driver"
        time.sleep(0.05)
    kept = len(list(Store(root).records()))
    assert not [path for path in (root / "cells").iterdir() if path.suffix != ".json"]
    summary = finish(root)
    assert summary.computed == summary.total - kept
    assert numbers(root) == undisturbed
    assert twice(root) <= 2  # at most the two under way were begun anew


def test_two_drivers_divide_one_store(tmp_path, undisturbed):
    root = tmp_path / "store"
    root.mkdir()
    pair = [driver(root, 1), driver(root, 1)]
    outputs = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert sum(int(out) for out, _ in outputs) == len(undisturbed)
    assert log(root) == sorted(NAMES) and numbers(root) == undisturbed


def test_a_full_disk_ends_the_run_with_what_was_finished(tmp_path, undisturbed):
    root = tmp_path / "small"
    root.mkdir()
    size = ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(root)]
    try:
        mounted = subprocess.run(size, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("cannot mount a small file system")
    try:
        (root / "log").touch()
        with pytest.raises(IgspError, match=r"cannot be written: .*No space left.*run the same command again"):
            finish(root)
        kept = numbers(root)
        assert kept and len(kept) < len(undisturbed)
        assert not [path for path in (root / "cells").iterdir() if path.suffix != ".json"]
        subprocess.run(["mount", "-o", "remount,size=8m", str(root)], check=True)
        summary = finish(root)
        assert summary.computed == summary.total - len(kept) and numbers(root) == undisturbed
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_a_clock_that_jumps_changes_nothing(tmp_path, undisturbed, monkeypatch, capsys):
    jumps = iter(range(10**9, 0, -(10**5)))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))  # every look at it a day back
    study = LightStudy(str(tmp_path))
    summary = engine.run(study, study.tasks(), Inline(study), maker(tmp_path), progress=True)
    assert summary.done == summary.total and numbers(tmp_path) == undisturbed
    assert "-" not in "".join(line.split(";")[-1] for line in capsys.readouterr().err.splitlines() if " left" in line)
    assert all(record.seconds >= 0 for record in Store(tmp_path).records())


def test_a_worker_with_other_numbers_or_none_at_all_is_refused(tmp_path):
    study = LightStudy(str(tmp_path))
    other = {"model": "toy", "device": "cpu", "dtype": "float32"}
    for make, message in (
        (maker(tmp_path, numbers=other), "another dtype than the driver plans: float32"),
        (maker(tmp_path, sources="c4"), r"cannot start: TypeError: .*'sources'"),
        (dies, "3 times before it had finished anything"),
    ):
        with pytest.raises(IgspError, match=message):
            engine.run(study, study.tasks(), LocalPool(1, 1), make, progress=False)


def test_progress_in_plain_lines_tells_what_runs_and_for_how_long(tmp_path, capsys):
    root = tmp_path
    study = LightStudy(str(root), seconds=0.6)
    engine.run(study, study.tasks(), Inline(study), maker(root), progress=True)
    lines = capsys.readouterr().err.splitlines()
    total = len(study.tasks())
    assert lines[0] == f"0/{total}: starting 1 workers; 0 running"
    assert all(line.split(":")[0].endswith(f"/{total}") for line in lines)
    assert any("running" in line and "cell " in line for line in lines) and "\x1b" not in "".join(lines)


@pytest.mark.parametrize("slots, least, most", [(1, 0.7, 1.0), (2, 0.35, 0.5)])
def test_a_run_tells_which_share_of_the_time_its_workers_were_busy(tmp_path, slots, least, most):
    study = LightStudy(str(tmp_path), seconds=0.3)
    workers = Inline(study, slots)  # one after the other, however many they are
    assert least < engine.run(study, study.tasks(), workers, maker(tmp_path), progress=False).busy <= most


def test_the_time_left_comes_from_recorded_tasks(tmp_path):
    first = ToyStudy(store=tmp_path, seconds=0.5)
    engine.run(first, tasks_of(first, ["recipes"]), Inline(first), maker(tmp_path), progress=False)
    study = ToyStudy(store=str(tmp_path))
    rows = {row["task"]: row for row in plan(study, tasks_of(study))}
    cell = rows["cell sparsegpt"]
    assert (cell["count"], cell["done"], cell["left"]) == (4, 1, 3)
    assert cell["seconds"] == pytest.approx(0.5, abs=0.2) and rows["pool"]["hours"] is None
    pace = Pace.of(study.store.records())
    assert pace.left({"cell sparsegpt": 3, "pool": 1}) == 3 * pace.typical("cell sparsegpt")
    lent = {row["task"]: row for row in plan(ToyStudy(store=tmp_path / "new"), tasks_of(study), study.store.records())}
    assert lent["cell sparsegpt"]["seconds"] == cell["seconds"] and lent["cell sparsegpt"]["left"] == 4
    pace.seconds["cell sparsegpt"] += [0.5, 3600.0]  # one lay paused
    assert pace.typical("cell sparsegpt") == pytest.approx(0.5, abs=0.2)


def test_sets_and_pools_go_from_the_worker_that_made_them_to_those_that_need_them(tmp_path):
    study = ToyStudy(store=tmp_path)
    script = Inline(study)
    engine.run(study, tasks_of(study, ["recipes", "igsp"]), script, maker(tmp_path), progress=False)
    sent = dict(script.seen)
    assert sent["calibration igsp 0"] == [("", 0)] and sent["cell igsp 0 sparsegpt 0.6"] == [("igsp", 0)]
    assert sent["cell recipes 0 sparsegpt 0.6"] == [("recipes", 0)] and sent["calibration recipes 0"] == []


def test_a_lost_task_is_tried_three_times(tmp_path, capsys):
    study, other = LightStudy(tmp_path), LightStudy(tmp_path / "other")
    (tmp_path / "other").mkdir()
    script = Inline(study, lose=["cell recipes"] * 2)
    assert not engine.run(study, study.tasks(), script, maker(tmp_path)).failed
    assert capsys.readouterr().err.count("LOST: cell recipes: its worker was lost; begun anew\n") == 2
    script = Inline(other, lose=["cell recipes"] * 3)
    summary = engine.run(other, other.tasks(), script, maker(tmp_path), progress=False)
    assert summary.failed == {"cell recipes": "its worker was lost, 3 times"}


def test_a_task_under_way_elsewhere_is_shown_as_running_and_left_to_the_other(tmp_path):
    study = ToyStudy(store=tmp_path)
    tasks = tasks_of(study, ["recipes"])
    with study.store.claim(name_of(study.specification(Task("dense")))) as mine:
        assert mine
        assert [r["state"] for r in survey(study, tasks) if r["stage"] == "dense"] == ["running"]
        driver = threading.Thread(
            target=engine.run, args=(study, tasks, Inline(study), maker(tmp_path)), kwargs={"progress": False}
        )
        driver.start()
        time.sleep(0.5)
        assert driver.is_alive()
    driver.join(20)
    assert not driver.is_alive() and not [r for r in survey(study, tasks) if r["state"] != "done"]


def test_a_thousand_workers_that_die_at_random_and_a_store_that_fails_lose_nothing(tmp_path):
    cells = int(os.environ.get("IGSP_SIMULATED_CELLS", "20000"))
    study = Grid(tmp_path, cells)
    tasks, workers = study.tasks(), Simulated(study, 1000, losing=0.01)
    begun = time.process_time()
    summary = OnPaper(study, tasks, workers, progress=False).run(maker(tmp_path))
    each = 1000 * (time.process_time() - begun) / len(tasks)
    print(f"{len(tasks)} tasks, {workers.deaths} deaths, {each:.2f} ms of the driver each")
    assert workers.deaths > cells / 200 and not summary.blocked
    assert summary.computed == summary.done == len(tasks) and not summary.failed
    assert set(study.begun.values()) == {1} and len(numbers(tmp_path)) == len(tasks)
    assert each < 5


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`igsp study` on the toy; returns exit code and output."""
    import igsp.study.study

    monkeypatch.setattr(igsp.study.study, "Study", ToyStudy)

    def call(action, *arguments):
        code = main(["study", action, "--store", str(tmp_path / "store"), *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def test_the_command_plans_runs_and_reports(command):
    code, text = command("plan", "--only", "kind=source", "--only", "strategy=uniform", "--json")
    counts = {row["task"]: row["count"] for row in json.loads(text)}
    sets = {"calibration source": 15, "calibration mix": 1}
    assert code == 0 and counts == {"dense": 1, **sets, "metrics": 16, "cell sparsegpt": 16}
    two = ("--only", "source=recipes", "--only", "source=stdlib")
    code, text = command("run", *two, "--jobs", "1", "--quiet", "-p", "behave", "{stdlib: fail}")
    assert code == 1 and "6 of 7 tasks on record, 6 of them computed now (workers: 1, " in text
    assert "failed: cell stdlib 0 sparsegpt 0.6: RuntimeError: a bad cell" in text
    code, text = command("status", *two)
    assert code == 0 and "failed: cell stdlib 0 sparsegpt 0.6: RuntimeError" in text
    code, text = command("status", "--only", "source=recipes", "--json")
    assert code == 0 and {row["state"] for row in json.loads(text)} == {"done"}
    code, text = command("plan", *two)
    assert code == 0 and "tasks to do: 1" in text and "None" not in text and "no time is on record" not in text
    code, text = command("plan", "--only", "kind=selection")
    assert "no time is on record of: pool, calibration selection (" in text and "None" not in text
    code, text = command("run", "--only", "source=stdlip")
    assert code == 2 and "did you mean stdlib" in text
    assert command("run", "--jobs", "0")[0] == 2


EARLY = """
import sys
sys.path.insert(0, {tests!r})
import torch
from igsp.study import engine
from igsp.study.workers import LocalPool
from light import LightStudy

class Threads(LightStudy):
    def _compute(self, name):
        with open(self.store.root / "log", "a") as log:
            log.write(str(torch.get_num_threads()) + chr(10))

def make():
    return Threads({root!r})

if __name__ == "__main__":
    study = make()
    engine.run(study, study.tasks(), LocalPool(1, 1), make, progress=False)
    print(torch.get_num_threads())
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has one thread")
def test_a_worker_has_its_share_of_the_cores_though_the_script_loads_torch_first(tmp_path):
    code = tmp_path / "early.py"
    code.write_text(EARLY.format(tests=str(Path(__file__).parent), root=str(tmp_path)))
    environment = {k: v for k, v in os.environ.items() if k not in THREADS}
    found = subprocess.run([sys.executable, str(code)], env=environment, capture_output=True, text=True, timeout=120)
    assert int(found.stdout) > 1, found.stderr
    assert set(log(tmp_path)) == {"1"}
