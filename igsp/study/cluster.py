"""Workers on a Ray cluster (the extra `cluster`): one actor per worker, kept warm; sets travel by the object store."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from igsp.errors import IgspError, UsageError
from igsp.study.engine import ATTEMPTS, THREADS, Done, Failed, Lost, Ready, Sets, Worker, describe

if TYPE_CHECKING:
    from igsp.study.study import Study, Task


class _Actor:
    """A worker inside Ray: one study in one process, on the cores or the GPU that Ray gives it."""

    def __init__(self, make: Callable[[], Study]) -> None:
        self.make = make
        self.worker: Worker | None = None

    def about(self) -> Ready | Failed:
        """Makes the study."""
        try:
            self.worker = Worker(self.make)
            return Ready(self.worker.about())
        except Exception as error:
            return Failed(describe(error))

    def perform(
        self, task: Task, spec: dict[str, Any], names: list[tuple[str, int]], *sets: Any
    ) -> tuple[Done | Failed, Any]:
        """The answer, and apart from it the product, so that the driver holds only a reference to that."""
        assert self.worker is not None
        answer = self.worker.perform(task, spec, [(*name, made) for name, made in zip(names, sets, strict=True)])
        return (replace(answer, product=None), answer.product) if isinstance(answer, Done) else (answer, None)


class RayCluster:
    """Actors on a Ray cluster, replaced where they or their node die.

    Args:
        address: of the cluster; None joins the one that RAY_ADDRESS names, or starts one on this machine.
        jobs: workers; by default as many as the cluster has GPUs or cores for.
        threads: cores per worker.  gpus: GPUs per worker.
    """

    def __init__(
        self, address: str | None = None, jobs: int | None = None, threads: int = 1, gpus: int = 0
    ) -> None:
        self._ray = ray = _import_ray()
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
        have = ray.cluster_resources()
        room = int(have.get("GPU", 0) // gpus if gpus else have.get("CPU", 0) // threads)
        if room < 1:
            ray.shutdown()
            raise UsageError(f"this Ray cluster has no room for one worker of {threads} cores and {gpus} GPUs: {have}")
        self.slots = min(jobs or room, room)
        self._options = {
            "num_cpus": threads, "num_gpus": gpus,
            "runtime_env": {"env_vars": dict.fromkeys(THREADS, str(threads))},
        }
        self._actors: dict[int, Any] = {}
        self._deaths: Counter[int] = Counter()
        self._pending: dict[Any, tuple[int, Any]] = {}  # reference -> worker, reference to the product

    def start(self, make: Callable[[], Study]) -> None:
        self._make = make
        for slot in range(self.slots):
            self._spawn(slot)

    def _spawn(self, slot: int) -> None:
        self._actors[slot] = self._ray.remote(_Actor).options(**self._options).remote(self._make)
        self._pending[self._actors[slot].about.remote()] = (slot, None)

    def submit(self, slot: int, task: Task, spec: dict[str, Any], sets: Sets) -> None:
        names, made = [one[:2] for one in sets], [one[2] for one in sets]
        perform = self._actors[slot].perform.options(num_returns=2)
        answer, product = perform.remote(task, spec, names, *made)
        self._pending[answer] = (slot, product if task.stage in ("pool", "calibration") else None)

    def events(self, timeout: float) -> Iterable[tuple[int, Ready | Done | Failed | Lost]]:
        if not self._pending:  # all idle, while other drivers are at what is left
            time.sleep(timeout)
        elif self._ray.wait(list(self._pending), timeout=timeout)[0]:
            for reference in self._ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)[0]:
                slot, product = self._pending.pop(reference)
                yield slot, self._answer(slot, reference, product)

    def _answer(self, slot: int, reference: Any, product: Any) -> Ready | Done | Failed | Lost:
        try:
            answer: Ready | Done | Failed = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:  # the actor, its node, or a set that lay on a lost node
            self._deaths[slot] += 1
            if self._deaths[slot] >= ATTEMPTS:
                cause = str(error).strip().splitlines()[-1]
                text = f"Ray worker {slot} was lost {ATTEMPTS} times before it had finished anything: {cause}"
                raise IgspError(text) from error
            self.restart(slot)
            return Lost(f"was lost ({type(error).__name__})")
        if not isinstance(answer, Ready):
            self._deaths[slot] = 0
        return replace(answer, product=product) if isinstance(answer, Done) else answer

    def restart(self, slot: int) -> None:
        self._ray.kill(self._actors[slot])
        self._spawn(slot)

    def stop(self) -> None:
        self._ray.shutdown()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("Ray is not installed: pip install 'igsp[cluster]', or run with --executor local") from None
    return ray
