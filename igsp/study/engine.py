"""Runs the tasks of a study on many workers.

The driver (the process that calls `run`) holds the lock of every task under way, writes every record and shows the
progress. Workers only compute: they keep the model in memory between tasks and never touch the store, so a worker that
dies loses one task, which the next worker takes up, and a driver that dies loses the tasks under way.
"""

from __future__ import annotations

import heapq
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

from igsp.errors import IgspError
from igsp.provenance import duration
from igsp.study.progress import Pace, Progress
from igsp.study.records import Record, name_of
from igsp.study.workers import Answer, Executor, begin, perform

if TYPE_CHECKING:
    from igsp.study.study import Study, Task

ATTEMPTS = 3  # times that a task may lose its worker, or a worker die at its start

Tasks = Mapping["Task", Sequence["Task"]]


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


@dataclass(frozen=True)
class Running:
    """A task on a worker, with the lock that is held for it."""

    index: int
    task: Task
    name: str
    lock: ExitStack
    since: float


class Scheduler:
    """Gives tasks to workers in order, each as soon as what it waits for is on record."""

    def __init__(self, study: Study, tasks: Tasks, executor: Executor, progress: bool = True) -> None:
        self.study, self.executor, self.store = study, executor, study.store
        self.tasks = list(tasks)
        place = {task: index for index, task in enumerate(self.tasks)}
        pending = {index for index, task in enumerate(self.tasks) if not patiently(study.done, task)}
        needed = {place[need] for index in pending for need in tasks[self.tasks[index]]}
        pending = {i for i in pending if self.tasks[i].stage != "pool" or i in needed}
        self.needs = {i: {place[need] for need in tasks[self.tasks[i]]} for i in pending}
        self.users = Counter(need for needs in self.needs.values() for need in needs)
        self.graph = TopologicalSorter({i: needs & pending for i, needs in self.needs.items()})
        self.graph.prepare()
        self.ready, self.elsewhere = sorted(self.graph.get_ready()), list[int]()
        self.left = Counter(self.tasks[index].kind for index in pending)
        self.busy: dict[int, Running] = {}
        self.idle: list[int] = []
        self.finished: queue.SimpleQueue[tuple[int, Future[Answer]] | None] = queue.SimpleQueue()
        self.losses: Counter[int] = Counter()  # by task
        self.deaths: Counter[int] = Counter()  # by worker, since it last finished something
        self.products: dict[int, Any] = {}
        self.failed: dict[str, str] = {}
        self.computed, self.work = 0, 0.0  # tasks, and the seconds that workers spent
        self.since: dict[int, float] = {}  # when a worker was ready for the first time
        self.pace = Pace.of(self.store.records()) if progress else Pace()
        self.progress = progress

    def run(self, make: Callable[[], Study]) -> Summary:
        """Computes what is missing. `make` gives a worker its own study.

        Raises:
            IgspError: no worker can be started, a worker would compute other numbers than planned, or a record cannot
                be written. Everything finished before is kept.
        """
        total, slots, self.make, ended = len(self.tasks), self.executor.slots, make, 0.0
        if self.ready:
            self.shown = Progress(total, total - self.left.total(), slots, self.progress)
            try:
                with self._signals():
                    for slot in range(slots):
                        self._submit(slot, begin, make)
                    while self.ready or self.elsewhere or self.busy:
                        self._assign()
                        self._wait()
                        running = [(one.task, one.since) for one in self.busy.values()]
                        self.shown.show(self.left, running, len(self.failed), self.pace)
            except OSError as error:
                raise IgspError(
                    f"the store '{self.store.root}' cannot be written: {error}. What was finished is kept; make room "
                    "and run the same command again"
                ) from error
            finally:
                ended = time.monotonic()
                self.executor.stop()
                for one in self.busy.values():
                    one.lock.close()
                self.shown.close()
        busy = self.work / max(1e-9, sum(ended - since for since in self.since.values()))
        blocked = self.left.total() - len(self.failed)
        return Summary(total, total - self.left.total(), self.computed, self.failed, blocked, slots, busy)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the loop between two steps (an exception amid one could be lost), a second at once."""
        before: dict[int, Any] = {}

        def stop(number: int, _: Any) -> None:
            signal.signal(number, before[number])
            self.finished.put(None)

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for changed, handler in before.items():
                signal.signal(changed, handler)

    def _submit(self, slot: int, call: Callable[..., Any], *arguments: Any) -> None:
        future = self.executor.submit(slot, call, *arguments)
        future.add_done_callback(lambda done: self.finished.put((slot, done)))

    def _wait(self) -> None:
        with suppress(queue.Empty):
            event = self.finished.get(timeout=0.5)
            if event is None:
                raise KeyboardInterrupt
            self._take(*event)

    def _assign(self) -> None:
        if not self.ready:
            self.ready, self.elsewhere = sorted(self.elsewhere), []
        while self.idle and self.ready:
            index = heapq.heappop(self.ready)
            task = self.tasks[index]
            spec, lock = self.study.specification(task), ExitStack()
            name = name_of(spec)
            if not patiently(lambda: lock.enter_context(self.store.claim(name))):  # noqa: B023
                self.elsewhere.append(index)
                lock.close()
            elif patiently(self.study.done, task):  # by another process, in the meantime
                self._finish(index)
                lock.close()
            else:
                slot = self.idle.pop()
                self.busy[slot] = Running(index, task, name, lock, time.monotonic())
                needs = [(self.tasks[need], self.products[need]) for need in self.needs[index] & self.products.keys()]
                self._submit(slot, perform, task, spec, [(need.strategy, need.draw, made) for need, made in needs])

    def _take(self, slot: int, future: Future[Answer]) -> None:
        running = self.busy.pop(slot, None)  # None: the worker was beginning
        with running.lock if running else nullcontext():
            try:
                result, reason, broken = future.result()
            except BrokenExecutor:
                self._bury(slot, running)
                return
            if running is None:
                if reason:
                    raise IgspError(f"a worker cannot start: {reason}")
                self._compare(result)
                self.since.setdefault(slot, time.monotonic())
            elif reason:
                self._fail(running, reason)
            else:
                self._keep(running, *result)
        if running:
            self.deaths[slot] = 0
        if broken:
            self.executor.replace(slot)
            self._submit(slot, begin, self.make)
        else:
            self.idle.append(slot)

    def _bury(self, slot: int, running: Running | None) -> None:
        how = self.executor.replace(slot)
        self.deaths[slot] += 1
        if self.deaths[slot] >= (ATTEMPTS**2 if running else ATTEMPTS):
            raise IgspError(f"worker {slot} {how} {self.deaths[slot]} times before it had finished anything")
        if running:
            self.losses[running.index] += 1
            if self.losses[running.index] == ATTEMPTS:
                self._fail(running, f"its worker {how}, {ATTEMPTS} times")
            else:
                self.work += time.monotonic() - running.since
                heapq.heappush(self.ready, running.index)
                self.shown.say(f"LOST: {running.task}: its worker {how}; begun anew")
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
        patiently(self.store.put, record)
        if product is not None and self.users[running.index]:
            self.products[running.index] = product
        self.computed += 1
        self.work += record.seconds
        self.pace.seconds[running.task.kind].append(record.seconds)
        self.shown.news = f"{running.task} in {duration(record.seconds)}"
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
        self.work += time.monotonic() - running.since
        self.failed[str(running.task)] = reason  # what waits for it never becomes ready
        self.shown.say(f"FAILED: {running.task}: {reason}")
        with suppress(OSError):  # a full disk takes the note, not the run
            self.store.fail(running.name, str(running.task), reason)


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
