"""Where tasks run, and which workers are killed, changes no byte of the results."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from certify.data import load
from certify.poisoning import ContentHash, Ensemble, Learner, Network
from certify.poisoning.executors import Executor, Processes, RayCluster
from certify.poisoning.job import Job, environment_of, same_environment
from scripts import poisoning
from tests.poisoning.workers import DyingNetwork, FailingNeighbors, hold

RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


def _data():
    data = load("digits", "train")
    return data.images[:80], data.labels[:80]


def _run(folder: Path, learner: Learner, executor: Executor | None) -> dict[str, bytes]:
    """The files of a job that trains and votes."""
    ensemble = Ensemble(ContentHash(6), learner, 10)
    job = Job(folder, ensemble, {"name": "digits"}, at_once=2)
    done: list[int] = []
    job.start(resume=True)
    job.train(ensemble.parts(_data()), executor=executor, on_group=done.append)
    job.vote("test", _data()[0], {"data": "digits"}, executor=executor, on_group=done.append)
    assert done == [2] * 6
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def _survives_a_kill(folder: Path, executor: Executor) -> None:
    """One worker is killed in the middle of its task; the results are those of this process alone."""
    deaths = folder / "deaths"
    deaths.mkdir()
    learner = DyingNetwork("linear", steps=3, batch_size=8, folder=str(deaths))
    (deaths / "nobody").touch()
    alone = _run(folder / "alone", learner, None)
    (deaths / "nobody").unlink()
    assert _run(folder / "workers", learner, executor) == alone
    assert len(alone) == 6
    [killed] = deaths.iterdir()
    assert killed.name != f"0-{os.getpid()}"


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_process_changes_no_result(tmp_path, count):
    _survives_a_kill(tmp_path, Processes(count))


@RAY
@pytest.mark.filterwarnings("ignore")  # of Ray's own code
def test_a_killed_ray_worker_changes_no_result(tmp_path):
    _survives_a_kill(tmp_path, RayCluster(count=2))


@RAY
@pytest.mark.filterwarnings("ignore")
def test_errors_of_ray_tasks_are_raised_here(tmp_path):
    with pytest.raises(ValueError, match="this part cannot be learned"):
        _run(tmp_path, FailingNeighbors(), RayCluster(count=1))


def test_errors_of_tasks_are_raised_here_and_what_was_done_stays(tmp_path):
    with pytest.raises(ValueError, match="this part cannot be learned"):
        _run(tmp_path, FailingNeighbors(), Processes(1))
    assert (tmp_path / "models-00000.safetensors").exists()
    assert not (tmp_path / "models-00002.safetensors").exists()


def test_workers_that_always_die_are_given_up(tmp_path):
    learner = DyingNetwork("linear", steps=1, batch_size=2, folder=str(tmp_path), times=0)
    with pytest.raises(ChildProcessError, match="died 1 times in a row"):
        _run(tmp_path / "job", learner, Processes(1, retries=0))


def test_other_machines_than_the_configured_one_are_refused():
    environment = environment_of("cpu")
    with same_environment(environment):
        pass
    with pytest.raises(ValueError, match="use identical machines"), same_environment(environment | {"torch": "1.0"}):
        pass


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_message_says_what_to_install(tmp_path):
    with pytest.raises(ImportError, match="install the extra 'ray'"):
        _run(tmp_path, Network("linear", steps=1), RayCluster())


def test_an_interruption_ends_the_tasks_in_progress(tmp_path):
    """Nobody takes their results."""
    results = Processes(2).run(hold, str(tmp_path), range(3))
    assert isinstance(results, Generator)
    assert next(results) == (0, b"done")
    while not (tmp_path / "begun-1").exists():
        time.sleep(0.01)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt())
    assert not multiprocessing.active_children()
    assert not list(tmp_path.glob("ended-*"))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are read from /proc")
def test_a_killed_script_leaves_no_process_and_continues_to_the_identical_result(tmp_path):
    options = {"partition": "ContentHash(8)", "learner": "Network('small_cnn', steps=150)", "at_once": 1}
    whole = poisoning.Args("train", tmp_path / "whole", **options)
    poisoning.main(whole)
    command = [sys.executable, "-m", "scripts.poisoning", "train", str(tmp_path / "killed"), "--workers", "2"]
    command += ["--partition", options["partition"], "--learner", options["learner"], "--at-once", "1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list((tmp_path / "killed").glob("models-*"))) < 2:
            time.sleep(0.02)
        workers = _children(process.pid)
        process.send_signal(signal.SIGKILL)
    assert workers, "the script ended before it could be killed"
    finished = len(list((tmp_path / "killed").glob("models-*")))
    assert finished < 8
    limit = time.monotonic() + 30
    while any(map(_running, workers)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(map(_running, workers))
    poisoning.main(poisoning.Args("train", tmp_path / "killed", **options, resume=True, workers=2))
    names = sorted(path.name for path in (tmp_path / "whole").glob("models-*"))
    assert len(names) == 8
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
