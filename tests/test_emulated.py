"""Programs that would run on a GPU, on an emulated one: each file of ``tests/emulated`` in a process of its own.

For one of them, or with other options of pytest: ``EMULATED_GPU=1 pytest tests/emulated/test_agents.py -n 0``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulated.device import AVAILABLE

FILES = sorted((Path(__file__).parent / "emulated").glob("test_*.py"))


@pytest.mark.skipif(not AVAILABLE, reason="this version of torch has no backends in Python")
@pytest.mark.timeout(900)  # each is a file of tests
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_on_an_emulated_gpu(path: Path) -> None:
    command = [sys.executable, "-m", "pytest", str(path), "-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=os.environ | {"EMULATED_GPU": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
