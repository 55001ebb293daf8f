import atexit
import os
import random
import shutil
import tempfile

import numpy as np
import pytest
import torch
from hypothesis import settings

# designs found once are shared by the tests of one run, and never written to the user's cache; empty folders of logs
# that Stable-Baselines3 makes for every agent go there, too
if "PYTEST_XDIST_WORKER" not in os.environ:
    folder = tempfile.mkdtemp(prefix="certify-cache-")
    os.environ |= {"CERTIFY_CACHE": folder, "SB3_LOGDIR": os.path.join(folder, "logs")}
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("default")


# tests that run side by side have a core each, and so have the programs they start
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads())
if THREADS == 1:
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _chance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees the same randomness each time, also where nobody gave a seed (CERTIFY_TEST_SEED: another one)."""
    chance = random.Random(f"{os.environ.get('CERTIFY_TEST_SEED', '0')} {request.node.nodeid}")
    # what numpy, and with it gymnasium, takes from the system where it is given no seed
    monkeypatch.setattr(np.random.bit_generator, "randbits", chance.getrandbits)
    random.seed(chance.getrandbits(32))
    np.random.seed(chance.getrandbits(32))  # noqa: NPY002
    torch.manual_seed(chance.getrandbits(32))
