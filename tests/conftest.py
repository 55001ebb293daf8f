import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _two_threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))
