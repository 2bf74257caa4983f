"""A grid on Ray: the numbers of one process, whatever dies in between. Needs the extra `cluster`."""

import multiprocessing
import threading
from pathlib import Path

import pytest
from light import NAMES, LightStudy, finish, log, maker, numbers, twice, wait_for_cells

from igsp.study import engine
from igsp.study.workers import RayCluster

pytest.importorskip("ray", reason="Ray is not installed (extra `cluster`)")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Ray's workers import the study from this folder."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    finish(root)
    return numbers(root)


def run(root, address=None, **options):
    study = LightStudy(str(root), **options)
    return engine.run(study, study.tasks(), RayCluster(address, 2), maker(root, **options), progress=False)


def test_the_numbers_of_one_process_though_a_worker_is_killed_and_a_cell_fails(tmp_path, undisturbed):
    summary = run(tmp_path, behave={"stdlib": "die once", "uniform": "fail"})
    assert (tmp_path / "died").exists()
    assert list(summary.failed) == ["cell uniform"] and summary.done == summary.total - 1
    assert finish(tmp_path).computed == 1
    assert log(tmp_path) == sorted(NAMES) and numbers(tmp_path) == undisturbed


def test_a_killed_node_gives_its_cells_to_the_others(tmp_path, undisturbed):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    victim = cluster.add_node(num_cpus=1)
    try:
        def blow():
            wait_for_cells(tmp_path, 1)
            for process in victim.all_processes["raylet"]:
                process.process.kill()

        thread = threading.Thread(target=blow)
        thread.start()
        summary = run(tmp_path, address=cluster.address, seconds=1.0)
        thread.join()
        assert not summary.failed and numbers(tmp_path) == undisturbed and twice(tmp_path) <= 1
    finally:
        cluster.shutdown()


def _drive(root):
    run(root, seconds=1.0)


def test_a_killed_driver_is_taken_up_where_it_was(tmp_path, undisturbed):
    process = multiprocessing.get_context("spawn").Process(target=_drive, args=(tmp_path,))
    process.start()
    wait_for_cells(tmp_path, 1)
    process.kill()
    process.join()
    kept = len(numbers(tmp_path))
    summary = finish(tmp_path)
    assert summary.computed == summary.total - kept and numbers(tmp_path) == undisturbed
