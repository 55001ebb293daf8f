"""The emulated device itself: what fails on a GPU fails here, and what makes Python wait is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.emulated.device import GPU, Remote, reads

HERE = torch.arange(4.0)
THERE = HERE.to(GPU)
MIXED: dict[str, Any] = {
    "add": lambda: HERE + THERE,
    "cat": lambda: torch.cat((HERE, THERE)),
    "matmul": lambda: HERE @ THERE,
    "index on the device": lambda: HERE[torch.tensor([1], device=GPU)],
    "mask on the device": lambda: HERE[THERE > 1],
    "assignment": lambda: THERE.clone().index_put_((torch.tensor([1, 2]),), HERE[:2]),
    "layer": lambda: torch.nn.Linear(4, 2)(THERE),
    "numpy": lambda: THERE.numpy(),
}


@pytest.mark.parametrize("name", MIXED)
def test_devices_do_not_mix(name):
    with pytest.raises((RuntimeError, TypeError)):
        MIXED[name]()


def test_values_are_those_of_the_cpu():
    assert isinstance(THERE, Remote)
    assert THERE.device == torch.device(GPU)
    assert torch.equal((2 * THERE + torch.tensor(1.0)).cpu(), 2 * HERE + 1)  # numbers may be anywhere
    assert torch.equal(THERE[torch.tensor([2, 0])].cpu(), HERE[[2, 0]])  # indices, too
    layer = torch.nn.Linear(4, 2).to(GPU)
    layer(THERE).sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad.cpu(), HERE.expand(2, 4))


WAITING: dict[str, Any] = {
    "item": lambda: THERE[0].item(),
    "bool": lambda: bool((THERE > 5).any()),
    "cpu": lambda: THERE.cpu(),
    "tolist": lambda: THERE.tolist(),
    "nonzero": lambda: THERE.nonzero(),
    "mask": lambda: THERE[THERE > 1],
    "unique": lambda: THERE.unique(),
    "copy": lambda: torch.empty(4).copy_(THERE),
}


@pytest.mark.parametrize("name", WAITING)
def test_waiting_is_counted(name):
    with reads() as count:
        WAITING[name]()
        assert count() >= 1


def test_work_on_the_device_does_not_wait():
    with reads() as count:
        (THERE.exp() + torch.arange(4, device=GPU)).sum().clamp(max=1)
        THERE.index_select(0, torch.tensor([1], device=GPU))
        assert count() == 0
