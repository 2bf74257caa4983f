"""Runs the tasks of a study on many workers: the scheduler, and a pool of processes on one machine.

The driver (the process that calls `run`) holds the lock of every task under way, writes every record and shows the
progress. Workers only compute: they keep the model in memory between tasks and never touch the store, so a worker that
dies loses one task, which the next worker takes up, and a driver that dies loses the tasks under way.
`igsp.cluster` has the same workers on a Ray cluster.
"""

# Neither torch nor igsp.study is imported with this module: a worker sets its threads and its GPU before they load.
from __future__ import annotations

import heapq
import multiprocessing
import os
import pickle
import signal
import statistics
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Protocol
from unittest.mock import patch

from tqdm import tqdm

from igsp.errors import IgspError
from igsp.provenance import duration, key_of
from igsp.study.records import Record

if TYPE_CHECKING:
    from igsp.study.study import Study, Task

ATTEMPTS = 3  # times that a task may lose its worker, or a worker die at its start, before it counts as failed
PATIENCE = 3.0  # seconds for workers to leave by themselves
SHOWN = 8  # lines of running tasks on a terminal
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Tasks = Mapping["Task", Sequence["Task"]]
Sets = Sequence[tuple[str, int, Any]]  # calibration sets and pools: name (of a pool: ""), draw, set


@dataclass(frozen=True)
class Ready:
    """A worker has started; `about` tells what its numbers depend on."""

    about: dict[str, Any]


@dataclass(frozen=True)
class Done:
    """A task is computed. `product` is the calibration set or pool that other tasks may need."""

    record: Record
    product: Any = None


@dataclass(frozen=True)
class Failed:
    """A task or the start of a worker raised. `broken`: not on purpose, the worker may be in a bad state."""

    reason: str
    broken: bool = False


@dataclass(frozen=True)
class Lost:
    """A worker is gone, and with it the task it was at; the executor is starting another in its place."""

    reason: str


class Executor(Protocol):
    """Workers by number. Each says `Ready` when it has started, and again after it was lost."""

    slots: int

    def start(self, make: Callable[[], Study]) -> None:
        """Starts the workers; each makes a study of its own."""

    def submit(self, slot: int, task: Task, spec: dict[str, Any], sets: Sets) -> None:
        """Gives a task to a worker that is ready and idle."""

    def events(self, timeout: float) -> Iterable[tuple[int, Ready | Done | Failed | Lost]]:
        """What happened, by worker; waits up to `timeout` seconds for it."""

    def restart(self, slot: int) -> None:
        """Replaces an idle worker by a fresh one."""

    def stop(self) -> None:
        """Ends all workers, whatever they are at."""


class Worker:
    """A study kept warm: the model is loaded by the first task that needs it."""

    def __init__(self, make: Callable[[], Study]) -> None:
        self.study = make()

    def about(self) -> dict[str, Any]:
        """What its numbers depend on, to be compared with the driver's."""
        return about(self.study)

    def perform(self, task: Task, spec: dict[str, Any], sets: Sets) -> Done | Failed:
        """Computes one task; an error becomes a reason."""
        try:
            return Done(*self.study.perform(task, spec, sets))
        except IgspError as error:
            return Failed(str(error))
        except Exception as error:
            return Failed(describe(error), broken=True)


def about(study: Study) -> dict[str, Any]:
    """Model, device, dtype and versions of a study."""
    return dict(study.numbers)


def describe(error: BaseException) -> str:
    """An unexpected error in one line, with the place it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


class LocalPool:
    """Worker processes on this machine, each with its share of the cores or its GPU.

    Args:
        jobs: workers; by default one per GPU, or one per core where the study runs on the CPU.
        threads: per worker; by default cores / jobs.
        gpus: device numbers, given out in turn; none for the CPU.
    """

    def __init__(self, jobs: int | None = None, threads: int | None = None, gpus: Sequence[str] = ()) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.slots = jobs or len(gpus) or cores
        self.threads, self.gpus = threads or max(1, cores // self.slots), gpus
        self._context = multiprocessing.get_context("spawn")  # a fork would share locks and CUDA with the driver
        self._workers: dict[int, tuple[Any, Connection]] = {}
        self._deaths: Counter[int] = Counter()

    def start(self, make: Callable[[], Study]) -> None:
        self._make = pickle.dumps(make)
        for slot in range(self.slots):
            self._spawn(slot)

    def _spawn(self, slot: int) -> None:
        environment = dict.fromkeys(THREADS, str(self.threads)) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), name=f"igsp-worker-{slot}")
        with patch.dict(os.environ, environment):  # it imports the driver's main module first, which may load torch
            process.start()
        theirs.close()
        self._workers[slot] = (process, ours)
        with suppress(OSError):  # it died at once: the next look at its end of the pipe tells
            ours.send_bytes(self._make)

    def submit(self, slot: int, task: Task, spec: dict[str, Any], sets: Sets) -> None:
        with suppress(OSError):
            self._workers[slot][1].send_bytes(pickle.dumps((task, spec, sets)))

    def events(self, timeout: float) -> list[tuple[int, Ready | Done | Failed | Lost]]:
        slots = {connection: slot for slot, (_, connection) in self._workers.items()}
        return [(slots[c], self._receive(slots[c])) for c in wait(list(slots), timeout)]  # type: ignore[index, arg-type]

    def _receive(self, slot: int) -> Ready | Done | Failed | Lost:
        process, connection = self._workers[slot]
        try:
            message: Ready | Done | Failed = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            process.join()
            self._deaths[slot] += 1
            reason = _ending(process.exitcode)
            if self._deaths[slot] >= ATTEMPTS:
                raise IgspError(f"worker {slot} {reason} {ATTEMPTS} times before it had finished anything") from None
            connection.close()
            self._spawn(slot)
            return Lost(reason)
        if not isinstance(message, Ready):
            self._deaths[slot] = 0
        return message

    def restart(self, slot: int) -> None:
        process, connection = self._workers[slot]
        process.kill()
        process.join()
        connection.close()
        self._spawn(slot)

    def stop(self) -> None:
        for _, connection in self._workers.values():
            connection.close()  # an idle worker leaves by itself
        end = time.monotonic() + PATIENCE
        for process, _ in self._workers.values():
            process.join(max(0.0, end - time.monotonic()))
            process.kill()
            process.join()
        self._workers.clear()


def visible_gpus() -> list[str]:
    """Numbers of the CUDA devices that this process may use."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL: out of memory, if nobody did it)"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _serve(connection: Connection) -> None:
    """Life of a worker process: makes its study, then one task after the other until the driver hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    threading.Thread(target=_end_with_driver, daemon=True).start()
    with suppress(EOFError, BrokenPipeError):
        make = pickle.loads(connection.recv_bytes())
        try:
            worker = Worker(make)
            connection.send_bytes(pickle.dumps(Ready(worker.about())))
        except Exception as error:
            connection.send_bytes(pickle.dumps(Failed(describe(error))))
            return
        while True:
            answer = worker.perform(*pickle.loads(connection.recv_bytes()))
            connection.send_bytes(pickle.dumps(answer))


def _end_with_driver() -> None:
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)


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
        self.terminal, self.plain = shown and sys.stderr.isatty(), shown and not sys.stderr.isatty()
        layout = "{desc} {percentage:3.0f}% |{bar:30}| {n_fmt}/{total_fmt} {postfix}"
        self.bar = tqdm(total=total, initial=done, desc="tasks", bar_format=layout, disable=not self.terminal)
        self.lines = [
            tqdm(bar_format="  {desc}", position=i + 1, leave=False, disable=not self.terminal)
            for i in range(min(slots, SHOWN))
        ]
        self.total, self.before, self.begun, self.shown_at = total, done, time.monotonic(), -1e9
        self.said_at = -1e9

    @property
    def due(self) -> bool:
        """Whether it is time to show something again."""
        return time.monotonic() >= self.shown_at + (0.2 if self.terminal else 1.0)

    def show(self, done: int, news: str, running: Mapping[str, float], failed: int, left: float | None) -> None:
        """Shows the state. `running`: seconds by task; `left`: seconds until the end, None if not known."""
        self.shown_at = now = time.monotonic()
        parts = [f"{len(running)} running"]
        if done > self.before:
            parts += [f"{60 * (done - self.before) / max(now - self.begun, 1e-3):.1f} a minute"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{duration(left)} left"] if left is not None else []
        if self.plain and (news or now > self.said_at + 60):
            self.said_at = now
            tqdm.write(f"{done}/{self.total}: {'; '.join(filter(None, (news, ', '.join(parts))))}", file=sys.stderr)
        if self.terminal:
            self.bar.n, self.bar.postfix = done, ", ".join(parts)
            self.bar.refresh()
            texts = [f"{task}: {duration(seconds)}" for task, seconds in running.items()]
            for line, text in zip(self.lines, [*texts, *[""] * SHOWN], strict=False):
                line.set_description_str(text)

    def close(self) -> None:
        for line in (*self.lines, self.bar):
            line.close()


@dataclass(frozen=True)
class Summary:
    """What a run did: tasks on record, tasks computed by it, reasons of the failed, tasks that waited for those.

    `busy` is the share of the time since they were ready that the workers spent computing.
    """

    total: int
    done: int
    computed: int
    failed: dict[str, str]
    blocked: int
    workers: int
    busy: float


@dataclass
class Running:
    """A task on a worker, with the lock that is held for it."""

    index: int
    key: str
    lock: ExitStack
    since: float


class Scheduler:
    """Gives tasks to workers in order, each as soon as what it waits for is on record."""

    def __init__(self, study: Study, tasks: Tasks, executor: Executor, progress: bool = True) -> None:
        self.study, self.executor, self.store = study, executor, study.store
        self.tasks = list(tasks)
        place = {task: index for index, task in enumerate(self.tasks)}
        pending = {index for index, task in enumerate(self.tasks) if not study.done(task)}
        needed = {place[need] for index in pending for need in tasks[self.tasks[index]]}
        pending = {i for i in pending if self.tasks[i].stage != "pool" or i in needed}
        self.needs = {i: {place[n] for n in tasks[self.tasks[i]]} for i in pending}
        self.waits = {i: self.needs[i] & pending for i in pending}
        self.then: dict[int, set[int]] = defaultdict(set)
        for index, waits in self.waits.items():
            for need in waits:
                self.then[need].add(index)
        self.ready = sorted(index for index, waits in self.waits.items() if not waits)
        self.left = Counter(self.tasks[index].kind for index in pending)
        self.open = len(pending)
        self.elsewhere: list[int] = []
        self.busy: dict[int, Running] = {}
        self.idle: list[int] = []
        self.losses: Counter[int] = Counter()
        self.products: dict[int, Any] = {}
        self.failed: dict[int, str] = {}
        self.blocked: set[int] = set()
        self.computed, self.news = 0, f"starting {executor.slots} workers"
        self.work, self.ended = 0.0, 0.0  # seconds that workers computed
        self.since: dict[int, float] = {}  # when a worker was ready for the first time
        self.pace = Pace.of(self.store.records()) if progress else Pace()
        self.progress = progress

    def run(self, make: Callable[[], Study]) -> Summary:
        """Computes what is missing. `make` gives a worker its own study.

        Raises:
            IgspError: no worker can be started, a worker would compute other numbers than planned, or a record cannot
                be written. Everything finished before is kept.
        """
        if self.open:
            shown = Progress(len(self.tasks), len(self.tasks) - self.open, self.executor.slots, self.progress)
            try:
                self.executor.start(make)
                while self.open:
                    self._assign()
                    for slot, message in self.executor.events(0.5):
                        self._take(slot, message)
                    self._show(shown)
            except OSError as error:
                raise IgspError(
                    f"the store '{self.store.root}' cannot be written: {error}. What was finished is kept; make room "
                    "and run the same command again"
                ) from error
            finally:
                self.ended = time.monotonic()
                self.executor.stop()
                for running in self.busy.values():
                    running.lock.close()
                shown.close()
        reasons = {str(self.tasks[index]): reason for index, reason in self.failed.items()}
        done = len(self.tasks) - len(self.failed) - len(self.blocked)
        slots = self.executor.slots
        busy = self.work / max(1e-9, sum(self.ended - since for since in self.since.values()))
        return Summary(len(self.tasks), done, self.computed, reasons, len(self.blocked), slots, busy)

    def _show(self, shown: Progress) -> None:
        if not self.progress or (self.open and not shown.due):
            return
        now, left, running = time.monotonic(), self.pace.left(self.left), {}
        for one in self.busy.values():
            task = self.tasks[one.index]
            running[str(task)] = now - one.since
            left -= min(now - one.since, self.pace.typical(task.kind) or 0.0)
        known = all(kind in self.pace.seconds for kind, count in self.left.items() if count)
        done = len(self.tasks) - self.open - len(self.failed) - len(self.blocked)
        shown.show(done, self.news, running, len(self.failed), left / self.executor.slots if known else None)
        self.news = ""

    def _assign(self) -> None:
        if not self.ready:
            self.ready, self.elsewhere = sorted(self.elsewhere), []
        while self.idle and self.ready:
            index = heapq.heappop(self.ready)
            task = self.tasks[index]
            spec = self.study.specification(task)
            lock = ExitStack()
            if not lock.enter_context(self.store.claim(key_of(spec))):
                self.elsewhere.append(index)
                lock.close()
            elif self.study.done(task):  # by another process, in the meantime
                self._finish(index)
                lock.close()
            else:
                slot = self.idle.pop()
                self.busy[slot] = Running(index, key_of(spec), lock, time.monotonic())
                self.executor.submit(slot, task, spec, self._sets(index))

    def _sets(self, index: int) -> Sets:
        return [
            (self.tasks[need].strategy, self.tasks[need].draw, self.products[need])
            for need in self.needs[index] if need in self.products
        ]

    def _take(self, slot: int, message: Ready | Done | Failed | Lost) -> None:
        if isinstance(message, Ready):
            self._compare(message.about)
            self.since.setdefault(slot, time.monotonic())
            self.idle.append(slot)
            return
        running = self.busy.pop(slot, None)
        if running is None:
            if isinstance(message, Failed):
                raise IgspError(f"a worker cannot start: {message.reason}")
            if slot in self.idle:
                self.idle.remove(slot)
            return
        self.work += message.record.seconds if isinstance(message, Done) else time.monotonic() - running.since
        with running.lock:
            if isinstance(message, Done):
                self._keep(running, message)
            elif isinstance(message, Failed):
                self._fail(running, message.reason)
            else:
                self._lose(running, message.reason)
        if isinstance(message, Failed) and message.broken:
            self.executor.restart(slot)
        elif not isinstance(message, Lost):
            self.idle.append(slot)

    def _compare(self, theirs: Mapping[str, Any]) -> None:
        ours = about(self.study)
        for name in {**ours, **theirs}:
            if theirs.get(name) != ours.get(name):
                raise IgspError(
                    f"a worker would compute with another {name} than the driver plans: {theirs.get(name)} in place of "
                    f"{ours.get(name)}. Way out: the same installation everywhere, and device and dtype by name "
                    "(-p device cuda -p dtype bfloat16)"
                )

    def _keep(self, running: Running, message: Done) -> None:
        task = self.tasks[running.index]
        self.store.put(message.record)
        self.study.learn(task, message.record)
        if message.product is not None:
            self.products[running.index] = message.product
        self.computed += 1
        self.pace.seconds[task.kind].append(message.record.seconds)
        self.news = f"{task} in {duration(message.record.seconds)}"
        self._finish(running.index)

    def _finish(self, index: int) -> None:
        self.open -= 1
        self.left[self.tasks[index].kind] -= 1
        for later in self.then[index]:
            self.waits[later].discard(index)
            if not self.waits[later]:
                heapq.heappush(self.ready, later)
        for need in self.needs[index]:
            self.then[need].discard(index)
            if not self.then[need]:
                self.products.pop(need, None)

    def _fail(self, running: Running, reason: str) -> None:
        task = self.tasks[running.index]
        with suppress(OSError):  # a full disk takes the note, not the run
            self.store.fail(running.key, str(task), reason)
        self.failed[running.index] = reason
        if self.progress:
            tqdm.write(f"FAILED: {task}: {reason}", file=sys.stderr)
        self.open -= 1
        self.left[task.kind] -= 1
        self._block(running.index)

    def _block(self, index: int) -> None:
        for later in self.then[index] - self.blocked:
            self.blocked.add(later)
            self.open -= 1
            self.left[self.tasks[later].kind] -= 1
            self._block(later)

    def _lose(self, running: Running, reason: str) -> None:
        self.losses[running.index] += 1
        for need in self.needs[running.index]:
            self.products.pop(need, None)  # it may be gone with the worker; the next one makes or loads it
        if self.losses[running.index] < ATTEMPTS:
            heapq.heappush(self.ready, running.index)
            if self.progress:
                tqdm.write(f"LOST: {self.tasks[running.index]}: its worker {reason}; begun anew", file=sys.stderr)
        else:
            self._fail(running, f"its worker {reason}, {ATTEMPTS} times")


def run(study: Study, tasks: Tasks, executor: Executor, make: Callable[[], Study], progress: bool = True) -> Summary:
    """Computes the missing tasks of a study on an executor; see `Scheduler.run`."""
    return Scheduler(study, tasks, executor, progress).run(make)


def survey(study: Study, tasks: Tasks) -> list[dict[str, Any]]:
    """State of tasks: stage, strategy, draw, method, sparsity; `state` (done, running, failed, left) and its reason."""
    failures = study.store.failures()
    rows = []
    for task in tasks:
        state, reason = "left", ""
        if study.done(task):
            state = "done"
        else:
            with suppress(KeyError):
                key = key_of(study.specification(task))
                reason = failures.get(key, "")
                state = "running" if study.store.running(key) else "failed" if reason else "left"
        method, sparsity = (task.cell.method, task.cell.sparsity) if task.cell else (None, None)
        rows.append({"task": str(task), "kind": task.kind, "stage": task.stage, "strategy": task.strategy,
                     "draw": task.draw, "method": method, "sparsity": sparsity, "state": state, "reason": reason})
    return rows


def plan(study: Study, tasks: Tasks, times: Iterable[Record] = ()) -> list[dict[str, Any]]:
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
