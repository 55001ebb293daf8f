"""Agents on an accelerator: the same parameters as on the CPU, and no update that makes Python wait."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rl
from rl import transfer
from rl.checkpoint import load_checkpoint, save_checkpoint
from rl.multi_goal import ENCODERS
from rl.normalization import NormalizedExtractor
from rl.training import STATE
from scripts import train_hand
from tests.agents import ALGORITHMS, agent, seek
from tests.emulated.device import GPU, reads
from tests.goal_sets import collector

RECIPE = {"random_action": 0.3, "action_l2": 1.0, "target_range": (-10.0, 0.0)}


def state(model: Any) -> dict[str, torch.Tensor]:
    own = {name: value.cpu() for name, value in model.policy.state_dict().items()}
    for i, optimizer in enumerate(model.optimizers()):
        for j, moments in optimizer.state_dict()["state"].items():
            own |= {f"{i}.{j}.{name}": torch.as_tensor(value).cpu() for name, value in moments.items()}
    return own


def assert_same(ours: Any, theirs: Any) -> None:
    expected, got = state(ours), state(theirs)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(got[name].to(value), value), name


MANY = lambda device: collector(goal_gradient_coef=0.3, device=device)  # noqa: E731
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"goal_gradient_coef": coef}) for name in ALGORITHMS for coef in (0.0, 0.5)),
    ("DDPG", {"goal_gradient_coef": 0.5, "goal_gradient": rl.GoalGradient(normalize=True)}),
    ("DDPG", {"goal_gradient_coef": 0.5, "normalized": True, **RECIPE}),
    ("SAC", {"goal_gradient_coef": 0.5, "ent_coef": 0.1}),
    ("DQN", {"goal_gradient_coef": 0.5, "temperature": 0.5}),
]


def made(name: str, device: str, options: dict[str, Any]) -> Any:
    options = dict(options)
    if options.pop("normalized", False):
        options["policy_kwargs"] = {"features_extractor_class": NormalizedExtractor, "net_arch": [16, 16]}
    return agent(name, device=device, **options)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_training_and_checkpoints(name, options, tmp_path):
    ours, theirs = (made(name, device, options).learn(64) for device in ("cpu", GPU))
    assert next(theirs.policy.parameters()).device.type == "gpu"
    assert_same(ours, theirs)
    save_checkpoint(theirs, tmp_path / "state.safetensors")
    for device in ("cpu", GPU):
        loaded = made(name, device, options)
        load_checkpoint(loaded, tmp_path / "state.safetensors")
        assert_same(theirs, loaded)
        loaded.learn(4, reset_num_timesteps=False)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_updates_do_not_wait_for_the_device(name, options):
    """Results are read when they are logged, once for all updates."""
    model = made(name, GPU, options).learn(64)
    counts = []
    for updates in (1, 6):
        with reads() as count:
            model.train(updates, batch_size=16)
            counts.append(count())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_many_goals(encoder):
    models = [collector(goal_gradient_coef=0.3, encoder=encoder, device=device).learn(32) for device in ("cpu", GPU)]
    assert_same(*models)


@pytest.mark.parametrize("make", [lambda device: made("DDPG", device, {"goal_gradient_coef": 0.5}), MANY])
def test_minibatches_from_page_locked_memory(make, monkeypatch):
    """As for a GPU, whose transfers may be in flight while Python goes on."""
    empty = torch.empty

    def page_locked(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*size, **options)

    asked: list[bool] = []
    ours = make("cpu").learn(64)
    monkeypatch.setattr(transfer, "_page_locked", lambda device: device.type == "gpu")
    monkeypatch.setattr(torch, "empty", page_locked)
    assert_same(ours, make(GPU).learn(64))
    assert any(asked)


def test_several_environments_and_the_whole_run(tmp_path):
    logs = []
    for device in ("cpu", GPU):
        model: Any = agent("DDPG", env=seek(2), device=device, goal_gradient_coef=0.2, gradient_steps=2)
        log = rl.run(
            model, seek(2), rl.Plan(steps=70, eval_every=70, eval_episodes=2, checkpoint_every=70), tmp_path / device
        )
        logs.append(log.results)
    assert logs[0] == logs[1]


def test_a_robot_hand(tmp_path, monkeypatch):
    """The whole recipe, with normalization and worker processes."""
    monkeypatch.setitem(
        train_hand.PRESETS, "laptop", train_hand.Preset(num_envs=2, batch_size=16, epochs=1, eval_episodes=2)
    )
    monkeypatch.setattr(train_hand, "CYCLES", 1)
    states = []
    for device in ("cpu", GPU):
        options: dict[str, Any] = {"goal_gradient_coef": 0.1, "normalize": True, "buffer_size": 1_000, "workers": 2}
        train_hand.main(train_hand.Args(tmp_path / device, preset="laptop", device=device, **options))
        states.append(load_file(tmp_path / device / "seed-0" / STATE))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
