"""Workers of a study, on this machine or on a Ray cluster: processes that do one call after the other.

What crosses by pickle: to a worker the function that makes its study, then task, specification, calibration sets and
pools; back come record, set or pool, or the reason of a failure as text. On this machine they go through a pipe that
the two processes inherit and no other can open; nothing listens on a port. On a cluster Ray carries them between its
nodes: whoever reaches those can run code there, so a token guards them (`~/.ray/auth_token`).
"""

# Neither torch nor the study is imported with this module: a worker sets its threads and its GPU before they load.
from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol
from unittest.mock import patch

from tqdm import tqdm

from igsp.errors import IgspError, UsageError

if TYPE_CHECKING:
    from igsp.study.study import Study, Task

PATIENCE = 3.0  # seconds for workers to leave by themselves
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Answer = tuple[Any, str, bool]  # result; the reason why there is none; whether the worker may be in a bad state


class Executor(Protocol):
    """Workers by number. A worker begins with its first call."""

    slots: int

    def submit(self, slot: int, call: Callable[..., Any], *arguments: Any) -> Future[Answer]:
        """Has a worker `answer` a call. The future raises BrokenExecutor where the worker dies."""

    def replace(self, slot: int) -> str:
        """Ends a worker if it lives; its next call goes to a fresh one. Returns how it ended."""

    def stop(self) -> None:
        """Ends all workers, whatever they are at."""


_study: Study | None = None  # of this worker: the model is loaded by the first task that needs it, and kept


def begin(make: Callable[[], Study]) -> dict[str, Any]:
    """In a worker: makes its study; says what its numbers depend on."""
    global _study
    _study = make()
    return dict(_study.numbers)


def perform(task: Task, spec: dict[str, Any], sets: Sequence[tuple[str, int, Any]]) -> Any:
    """In a worker: the record of a task, and the set or pool that other tasks may need.

    `sets`: calibration sets and pools that other workers made, as (name, of a pool "", draw, set).
    """
    assert _study is not None
    return _study.perform(task, spec, sets)


def answer(call: Callable[..., Any], *arguments: Any) -> Answer:
    """In a worker: a call; an error becomes its text, an unexpected one with the place it came from."""
    try:
        return call(*arguments), "", False
    except IgspError as error:
        return None, str(error), False
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
        return None, f"{type(error).__name__}: {error}{place}", True


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
        self._workers: dict[int, tuple[Any, Connection]] = {}

    def submit(self, slot: int, call: Callable[..., Any], *arguments: Any) -> Future[Answer]:
        if slot not in self._workers:
            self._workers[slot] = self._spawn(slot)
        future: Future[Answer] = Future()
        exchange = (self._workers[slot][1], future, call, *arguments)
        threading.Thread(target=_exchange, args=exchange, daemon=True).start()
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
        future.set_result((None, f"{type(error).__name__}: {error}", True))


def _serve(driver: Connection) -> None:
    """Life of a worker process: one call after the other until the driver says that it is over, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore of the system, which a killed worker would leave
    threading.Thread(target=_end_with_driver, daemon=True).start()
    while message := driver.recv():
        driver.send(answer(*message))


def _end_with_driver() -> None:
    if driver := multiprocessing.parent_process():
        driver.join()
        os._exit(1)


def visible_gpus() -> list[str]:
    """Numbers of the CUDA devices that this process may use."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]


class _Actor:
    """A worker inside Ray: one process, on the cores or the GPU that Ray gives it."""

    def answer(self, *message: Any) -> Answer:
        return answer(*message)


class RayCluster:
    """Actors on a Ray cluster (the extra `cluster`), replaced where they or their node die.

    Args:
        address: of the cluster; None joins the one that RAY_ADDRESS names, or starts one on this machine.
        jobs: workers; by default as many as the cluster has GPUs or cores for.
        threads: cores per worker.  gpus: GPUs per worker.
    """

    def __init__(self, address: str | None = None, jobs: int | None = None, threads: int = 1, gpus: int = 0) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            way = "pip install 'igsp[cluster]', or run with --executor local"
            raise UsageError(f"Ray is not installed: {way}") from None
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
        have = ray.cluster_resources()
        room = int(have.get("GPU", 0) // gpus if gpus else have.get("CPU", 0) // threads)
        if room < 1:
            ray.shutdown()
            raise UsageError(f"this Ray cluster has no room for one worker of {threads} cores and {gpus} GPUs: {have}")
        self.slots = min(jobs or room, room)
        environment = {"env_vars": dict.fromkeys(THREADS, str(threads))}
        self._kind = ray.remote(_Actor).options(num_cpus=threads, num_gpus=gpus, runtime_env=environment)
        self._ray, self._actors, self._ends = ray, dict[int, Any](), dict[int, str]()

    def submit(self, slot: int, call: Callable[..., Any], *arguments: Any) -> Future[Answer]:
        if slot not in self._actors:
            self._actors[slot] = self._kind.remote()
        future: Future[Answer] = Future()

        def take(theirs: Future[Answer]) -> None:
            if error := theirs.exception():  # the actor or its node is gone: an error of the call is an answer
                self._ends[slot] = type(error).__name__
                future.set_exception(BrokenExecutor())
            else:
                future.set_result(theirs.result())

        self._actors[slot].answer.remote(call, *arguments).future().add_done_callback(take)
        return future

    def replace(self, slot: int) -> str:
        self._ray.kill(self._actors.pop(slot))
        return f"was lost ({self._ends.pop(slot, 'replaced')})"

    def stop(self) -> None:
        self._ray.shutdown()
