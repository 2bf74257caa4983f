"""Runs the tasks of a study on many workers: the scheduler, and a pool of processes on one machine.

The driver (the process that calls `run`) holds the lock of every task under way, writes every record and shows the
progress. Workers only compute: they keep the model in memory between tasks and never touch the store, so a worker that
dies loses one task, which the next worker takes up, and a driver that dies loses the tasks under way.
`igsp.study.cluster` has the same workers on a Ray cluster.

What crosses by pickle: to a worker the function that makes its study, then task, specification, calibration sets and
pools; back come record, set or pool, or the reason of a failure as text. `LocalPool` sends them through pipes that the
two processes inherit and no other can open; nothing listens on a port.
"""

# Neither torch nor the study is imported with this module: a worker sets its threads and its GPU before they load.
from __future__ import annotations

import heapq
import multiprocessing
import os
import queue
import signal
import statistics
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol
from unittest.mock import patch

from tqdm import tqdm

from igsp.errors import IgspError
from igsp.provenance import duration
from igsp.study.records import Record, name_of

if TYPE_CHECKING:
    from igsp.study.study import Study, Task

ATTEMPTS = 3  # times that a task may lose its worker, or a worker die at its start
PATIENCE = 3.0  # seconds for workers to leave by themselves
SHOWN = 8  # lines of running tasks on a terminal
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Tasks = Mapping["Task", Sequence["Task"]]
Answer = tuple[Any, str, bool]  # result; the reason why there is none; whether the worker may be in a bad state


class Executor(Protocol):
    """Workers by number, each a process that does one call after the other. A worker begins with its first call."""

    slots: int

    def submit(self, slot: int, call: Callable[..., Answer], *arguments: Any) -> Future[Answer]:
        """Has a worker call a function. The future raises BrokenExecutor where the worker dies."""

    def replace(self, slot: int) -> str:
        """Ends a worker if it lives; its next call goes to a fresh one. Returns how it ended."""

    def stop(self) -> None:
        """Ends all workers, whatever they are at."""


_study: Study | None = None  # of this worker: the model is loaded by the first task that needs it, and kept


def begin(make: Callable[[], Study]) -> Answer:
    """In a worker: makes its study; the result says what its numbers depend on."""
    global _study
    try:
        _study = make()
        return dict(_study.numbers), "", False
    except Exception as error:
        return None, describe(error), True


def perform(task: Task, spec: dict[str, Any], sets: Sequence[tuple[str, int, Any]]) -> Answer:
    """In a worker: one task; the result is its record, and the set or pool that other tasks may need.

    `sets`: calibration sets and pools that other workers made, as (name, of a pool "", draw, set).
    """
    assert _study is not None
    try:
        return _study.perform(task, spec, sets), "", False
    except IgspError as error:
        return None, str(error), False
    except Exception as error:
        return None, describe(error), True


def describe(error: BaseException) -> str:
    """An unexpected error in one line, with the place it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


class LocalPool:
    """Worker processes on this machine, each with its share of the cores or its GPU, at the other end of a pipe.

    Args:
        jobs: workers; by default one per GPU, or one per core where the study runs on the CPU.
        threads: per worker; by default cores / jobs.
        gpus: device numbers, given out in turn; none for the CPU.
    """

    def __init__(self, jobs: int | None = None, threads: int | None = None, gpus: Sequence[str] = ()) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.slots = jobs or len(gpus) or cores
        self.threads, self.gpus = threads or max(1, cores // self.slots), gpus
        self._workers: dict[int, tuple[Any, Connection]] = {}

    def submit(self, slot: int, call: Callable[..., Answer], *arguments: Any) -> Future[Answer]:
        if slot not in self._workers:
            self._workers[slot] = self._spawn(slot)
        future: Future[Answer] = Future()
        message = (self._workers[slot][1], future, call, arguments)
        threading.Thread(target=_exchange, args=message, daemon=True).start()
        return future

    def _spawn(self, slot: int) -> tuple[Any, Connection]:
        environment = dict.fromkeys(THREADS, str(self.threads)) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        context = multiprocessing.get_context("spawn")  # a fork would share locks and CUDA with the driver
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), name=f"igsp-worker-{slot}")
        with patch.dict(os.environ, environment):  # it imports the driver's main module first, which may load torch
            process.start()
        theirs.close()
        return process, ours

    def replace(self, slot: int) -> str:
        process, connection = self._workers.pop(slot)
        process.kill()
        process.join()
        connection.close()
        code = process.exitcode
        if code == -signal.SIGKILL:
            return "was killed (SIGKILL: out of memory, if nobody did it)"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def stop(self) -> None:
        end = time.monotonic() + PATIENCE
        for _, connection in self._workers.values():
            with suppress(OSError):
                connection.send(None)  # an idle worker leaves by itself
        for process, _ in self._workers.values():
            process.join(max(0.0, end - time.monotonic()))
        for slot in list(self._workers):
            self.replace(slot)


def _exchange(worker: Connection, future: Future[Answer], *message: Any) -> None:
    try:
        worker.send(message)
        future.set_result(worker.recv())
    except (EOFError, OSError):
        future.set_exception(BrokenExecutor())
    except Exception as error:  # it cannot be pickled
        future.set_exception(error)


def _serve(connection: Connection) -> None:
    """Life of a worker process: one call after the other until the driver says that it is over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore of the system, which a killed worker would leave
    threading.Thread(target=_end_with_driver, daemon=True).start()
    while message := connection.recv():
        call, arguments = message
        connection.send(call(*arguments))


def visible_gpus() -> list[str]:
    """Numbers of the CUDA devices that this process may use."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]


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
        self.total, self.before, self.begun = total, done, time.monotonic()
        self.due, self.silent = 0.0, 0.0  # when it is time to show something again, and when to say something

    def show(self, done: int, news: str, running: Mapping[str, float], failed: int, left: float | None) -> None:
        """Shows the state. `running`: seconds by task; `left`: seconds until the end, None if not known."""
        now = time.monotonic()
        self.due = now + (0.2 if self.terminal else 1.0)
        parts = [f"{len(running)} running"]
        if done > self.before:
            parts += [f"{60 * (done - self.before) / max(now - self.begun, 1e-3):.1f} a minute"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{duration(left)} left"] if left is not None else []
        if self.plain and (news or now > self.silent):
            self.silent = now + 60
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
        self.study, self.executor, self.store, self.progress = study, executor, study.store, progress
        self.tasks = list(tasks)
        place = {task: index for index, task in enumerate(self.tasks)}
        pending = {index for index, task in enumerate(self.tasks) if not patiently(study.done, task)}
        needed = {place[need] for index in pending for need in tasks[self.tasks[index]]}
        pending = {i for i in pending if self.tasks[i].stage != "pool" or i in needed}
        self.needs = {i: {place[need] for need in tasks[self.tasks[i]]} for i in pending}
        self.users = Counter(need for needs in self.needs.values() for need in needs)
        self.graph = TopologicalSorter({i: needs & pending for i, needs in self.needs.items()})
        self.graph.prepare()
        self.ready = sorted(self.graph.get_ready())
        self.left = Counter(self.tasks[index].kind for index in pending)
        self.elsewhere: list[int] = []
        self.busy: dict[int, Running] = {}
        self.idle: list[int] = []
        self.finished: queue.SimpleQueue[tuple[int, Future[Answer]] | None] = queue.SimpleQueue()
        self.losses: Counter[int] = Counter()  # by task
        self.deaths: Counter[int] = Counter()  # by worker, since it last finished something
        self.products: dict[int, Any] = {}
        self.failed: dict[int, str] = {}
        self.computed, self.news = 0, f"starting {executor.slots} workers"
        self.work, self.ended = 0.0, 0.0  # seconds that workers computed
        self.since: dict[int, float] = {}  # when a worker was ready for the first time
        self.pace = Pace.of(self.store.records()) if progress else Pace()

    def run(self, make: Callable[[], Study]) -> Summary:
        """Computes what is missing. `make` gives a worker its own study.

        Raises:
            IgspError: no worker can be started, a worker would compute other numbers than planned, or a record cannot
                be written. Everything finished before is kept.
        """
        self.make = make
        if self.ready:
            shown = Progress(len(self.tasks), self._done, self.executor.slots, self.progress)
            try:
                with self._signals():
                    for slot in range(self.executor.slots):
                        self._submit(slot, begin, make)
                    while self.ready or self.elsewhere or self.busy:
                        self._assign()
                        self._wait()
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
        busy = self.work / max(1e-9, sum(self.ended - since for since in self.since.values()))
        blocked = self.left.total() - len(self.failed)
        return Summary(len(self.tasks), self._done, self.computed, reasons, blocked, self.executor.slots, busy)

    @property
    def _done(self) -> int:
        return len(self.tasks) - self.left.total()

    def _submit(self, slot: int, call: Callable[..., Answer], *arguments: Any) -> None:
        future = self.executor.submit(slot, call, *arguments)
        future.add_done_callback(lambda done: self.finished.put((slot, done)))

    def _wait(self) -> None:
        with suppress(queue.Empty):
            event = self.finished.get(timeout=0.5)
            if event is None:
                raise KeyboardInterrupt
            self._take(*event)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the loop between two steps: an exception amid one could be lost, or a lock. A second
        one ends it at once."""
        before: dict[int, Any] = {}

        def stop(number: int, _: Any) -> None:
            signal.signal(number, before[number])
            self.finished.put(None)

        if threading.current_thread() is threading.main_thread():
            known = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            before |= {number: how for number, how in known.items() if how not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, how in before.items():
                signal.signal(number, how)

    def _show(self, shown: Progress) -> None:
        now = time.monotonic()
        if not self.progress or (self.busy and now < shown.due):
            return
        left, running = self.pace.left(self.left), {}
        for one in self.busy.values():
            task = self.tasks[one.index]
            running[str(task)] = now - one.since
            left -= min(now - one.since, self.pace.typical(task.kind) or 0.0)
        known = all(kind in self.pace.seconds for kind, count in self.left.items() if count)
        shown.show(self._done, self.news, running, len(self.failed), left / self.executor.slots if known else None)
        self.news = ""

    def _assign(self) -> None:
        if not self.ready:
            self.ready, self.elsewhere = sorted(self.elsewhere), []
        while self.idle and self.ready:
            index = heapq.heappop(self.ready)
            task = self.tasks[index]
            spec = self.study.specification(task)
            lock = ExitStack()
            if not patiently(lambda: lock.enter_context(self.store.claim(name_of(spec)))):  # noqa: B023
                self.elsewhere.append(index)
                lock.close()
            elif patiently(self.study.done, task):  # by another process, in the meantime
                self._finish(index)
                lock.close()
            else:
                slot = self.idle.pop()
                self.busy[slot] = Running(index, name_of(spec), lock, time.monotonic())
                needs = [(self.tasks[need], self.products[need]) for need in self.needs[index] & self.products.keys()]
                sets = [(need.strategy, need.draw, product) for need, product in needs]
                self._submit(slot, perform, task, spec, sets)

    def _take(self, slot: int, future: Future[Answer]) -> None:
        running = self.busy.pop(slot, None)  # None: the worker was beginning
        try:
            result, reason, broken = future.result()
        except BrokenExecutor:
            self._bury(slot, running)
            return
        except Exception as error:  # what was to be sent, or the answer, cannot be pickled
            result, reason, broken = None, describe(error), True
        if running is None:
            if reason:
                raise IgspError(f"a worker cannot start: {reason}")
            self._compare(result)
            self.since.setdefault(slot, time.monotonic())
        else:
            self.deaths[slot] = 0
            with running.lock:
                if reason:
                    self._fail(running, reason)
                else:
                    self._keep(running, *result)
        if broken:
            self.executor.replace(slot)
            self._submit(slot, begin, self.make)
        else:
            self.idle.append(slot)

    def _bury(self, slot: int, running: Running | None) -> None:
        how = self.executor.replace(slot)
        self.deaths[slot] += 1
        if running:
            with running.lock:
                self._lose(running, how)
        if self.deaths[slot] >= (ATTEMPTS**2 if running else ATTEMPTS):
            raise IgspError(f"worker {slot} {how} {self.deaths[slot]} times before it had finished anything")
        self._submit(slot, begin, self.make)

    def _compare(self, theirs: Mapping[str, Any]) -> None:
        ours = self.study.numbers
        for name in {**ours, **theirs}:
            if theirs.get(name) != ours.get(name):
                raise IgspError(
                    f"a worker would compute with another {name} than the driver plans: {theirs.get(name)} in place of "
                    f"{ours.get(name)}. Way out: the same installation everywhere, and device and dtype by name "
                    "(-p device cuda -p dtype bfloat16)"
                )

    def _keep(self, running: Running, record: Record, product: Any) -> None:
        task = self.tasks[running.index]
        patiently(self.store.put, record)
        if product is not None and self.users[running.index]:
            self.products[running.index] = product
        self.computed += 1
        self.work += record.seconds
        self.pace.seconds[task.kind].append(record.seconds)
        self.news = f"{task} in {duration(record.seconds)}"
        self._finish(running.index)

    def _finish(self, index: int) -> None:
        self.left[self.tasks[index].kind] -= 1
        self.graph.done(index)
        for later in self.graph.get_ready():
            heapq.heappush(self.ready, later)
        for need in self.needs[index]:
            self.users[need] -= 1
            if not self.users[need]:
                self.products.pop(need, None)

    def _fail(self, running: Running, reason: str) -> None:
        task = str(self.tasks[running.index])
        self.work += time.monotonic() - running.since
        with suppress(OSError):  # a full disk takes the note, not the run
            self.store.fail(running.key, task, reason)
        self.failed[running.index] = reason  # what waits for it never becomes ready
        self._warn(f"FAILED: {task}: {reason}")

    def _lose(self, running: Running, how: str) -> None:
        self.losses[running.index] += 1
        if self.losses[running.index] == ATTEMPTS:
            self._fail(running, f"its worker {how}, {ATTEMPTS} times")
            return
        self.work += time.monotonic() - running.since
        heapq.heappush(self.ready, running.index)
        self._warn(f"LOST: {self.tasks[running.index]}: its worker {how}; begun anew")

    def _warn(self, text: str) -> None:
        if self.progress:
            tqdm.write(text, file=sys.stderr)


def patiently(call: Callable[..., Any], *arguments: Any) -> Any:
    """Calls again for three seconds where a store fails: on a network that passes, on a full disk it does not."""
    for attempt in range(8):
        with suppress(OSError):
            return call(*arguments)
        time.sleep(0.001 * 3**attempt)
    return call(*arguments)


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
                key = name_of(study.specification(task))
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
