"""Workers on a Ray cluster (the extra `cluster`): one actor per worker.

What crosses by pickle is what `igsp.study.engine` sends to its workers, here by Ray between the nodes of the cluster.
Whoever can reach them can run code on them, so Ray's token guards the cluster (`~/.ray/auth_token`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from typing import Any

from igsp.errors import UsageError
from igsp.study.engine import THREADS, Answer


class _Actor:
    """A worker inside Ray: one process, on the cores or the GPU that Ray gives it."""

    def call(self, call: Callable[..., Answer], *arguments: Any) -> Answer:
        return call(*arguments)


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
        self._actor = ray.remote(_Actor).options(num_cpus=threads, num_gpus=gpus, runtime_env=environment)
        self._actors: dict[int, Any] = {}
        self._ends: dict[int, str] = {}
        self._ray = ray

    def submit(self, slot: int, call: Callable[..., Answer], *arguments: Any) -> Future[Answer]:
        if slot not in self._actors:
            self._actors[slot] = self._actor.remote()
        future: Future[Answer] = Future()

        def take(answer: Future[Answer]) -> None:
            error = answer.exception()
            if error is None:
                future.set_result(answer.result())
            else:  # the actor or its node is gone: a call returns the errors of its own
                self._ends[slot] = type(error).__name__
                future.set_exception(BrokenExecutor())

        self._actors[slot].call.remote(call, *arguments).future().add_done_callback(take)
        return future

    def replace(self, slot: int) -> str:
        self._ray.kill(self._actors.pop(slot))
        return f"was lost ({self._ends.pop(slot, 'replaced')})"

    def stop(self) -> None:
        self._ray.shutdown()
