import atexit
import os
import shutil
import tempfile

import pytest
import torch
from hypothesis import settings

# designs found once are shared by the tests of one run, and never written to the user's cache
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["CERTIFY_CACHE"] = tempfile.mkdtemp(prefix="certify-cache-")
    atexit.register(shutil.rmtree, os.environ["CERTIFY_CACHE"], ignore_errors=True)

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("default")


# tests that run side by side have a core each, and so have the programs they start
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads())
if THREADS == 1:
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(THREADS)
