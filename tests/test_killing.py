"""Commands that are killed at any of their file operations continue to the identical result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SCHEME = "RandomizedAblation(keep=12)"
COMMANDS = {
    "train": "scripts.train {run} --epochs 2 --batch-size 16 --data DATA --scheme SCHEME",
    "certify": "scripts.certify {run} --checkpoint MODEL --n0 10 --n 50 --images-per-step 2",
    "shard": "scripts.certify {run} --checkpoint MODEL --n0 10 --n 50 --images-per-step 2 --shard 1/2",
    "attack": "scripts.attack {run} --checkpoint MODEL --n 20 --restarts 1 --max-queries 5 --max 2",
    "poisoning": "scripts.poisoning train {run} --partition ContentHash(4) --learner LEARNER --at-once 2 --data DATA",
    "features": "scripts.train_features {run} --method METHOD --data DATA",
    "agents": "scripts.train_bit_flipping {run} --d 3 --steps 192 --eval-every 64 --eval-episodes 2 --batch-size 8"
    " --checkpoint-every 64",
}


@pytest.fixture
def values(tmp_path: Path) -> dict[str, str]:
    """What stands for the words in capital letters."""
    generator, images = np.random.default_rng(0), {}
    for split, count in (("train", 24), ("test", 6)):
        images[f"{split}_images"] = generator.integers(0, 256, (count, 1, 8, 8)).astype(np.uint8)
        images[f"{split}_labels"] = np.arange(count) % 3
    np.savez(tmp_path / "data.npz", **images)
    return {
        "DATA": f"npz(path={str(tmp_path / 'data.npz')!r}, classes=3)",
        "SCHEME": SCHEME,
        "MODEL": str(tmp_path / "model"),
        "LEARNER": "Network('linear', steps=2)",
        "METHOD": "RotNet('small_cnn', epochs=2)",
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has PyTorch loaded")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_at_any_file_operation(tmp_path: Path, values: dict[str, str], name: str) -> None:
    def run(*words: str) -> str:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout

    words = [values.get(word, word) for word in COMMANDS[name].split()]
    if "--checkpoint" in words:
        run("scripts.train", values["MODEL"], "--epochs", "1", "--data", values["DATA"], "--scheme", SCHEME)
    *problems, count = run("tests.killing", str(tmp_path / "killed"), *words).splitlines()
    assert problems == []
    assert int(count.split()[0]) >= 4
