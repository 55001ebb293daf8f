"""Training of robot hands: the recipe as arguments, and a run that is continued."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.registration import EnvSpec
from safetensors.torch import load_file

from rl.training import STATE, EvaluationLog
from scripts import rollout, train_hand
from scripts.parts import goal_training
from scripts.parts.goal_training import read_configuration
from scripts.train_hand import Args, Preset, configuration


def test_the_published_setting() -> None:
    run = configuration(Args(Path("x")))
    assert run.plan == {"steps": 4_750_000, "eval_every": 95_000, "eval_episodes": 190, "checkpoint_every": 475_000}
    assert run.num_envs * run.arguments["train_freq"] == 1_900  # steps of a cycle
    assert run.arguments["batch_size"] == 4_864
    assert run.arguments["gamma"] == pytest.approx(0.98)
    assert run.arguments["target_range"] == pytest.approx([-50, 0])
    assert run.arguments["buffer_size"] >= 19_000_000  # a million for each worker
    block = configuration(Args(Path("x"), env="HandManipulateBlock-v1", normalize=True, goal_gradient_coef=0.1))
    assert block.arguments["gamma"] == pytest.approx(0.99)
    assert block.goal_gradient == {"normalize": True}
    few = configuration(Args(Path("x"), preset="laptop", num_envs=4, buffer_size=1_050))
    assert few.num_envs == 4
    assert few.plan["eval_every"] == 50 * 4 * 50  # an epoch: cycles, episodes, steps
    assert few.arguments["buffer_size"] == 1_200  # whole cycles
    with pytest.raises(ValueError, match="num-envs: got 0"):
        configuration(Args(Path("x"), num_envs=0))


def test_time_limits_that_are_those_of_a_task() -> None:
    run = configuration(Args(Path("x"), env="envs:ContinuousSeek-v0"))
    assert run.arguments["train_freq"] == gymnasium.make("ContinuousSeek-v0").spec.max_episode_steps  # type: ignore[union-attr]
    run.make_env(2).close()


def test_a_run_that_is_continued_equals_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With normalization, recipe, worker processes and goal gradients; whatever the number of workers."""
    monkeypatch.setitem(train_hand.PRESETS, "laptop", Preset(num_envs=2, batch_size=16, epochs=3, eval_episodes=2))
    monkeypatch.setattr(train_hand, "CYCLES", 1)
    common: dict[str, Any] = {"preset": "laptop", "goal_gradient_coef": 0.1, "normalize": True, "buffer_size": 1_000}
    common["device"] = "cpu"  # where it is the same bit for bit
    train_hand.main(Args(tmp_path / "whole", workers=1, **common))
    train_hand.main(Args(tmp_path / "parts", workers=2, epochs=2, **common))
    train_hand.main(Args(tmp_path / "parts", workers=1, resume=True, **common))
    whole, parts = tmp_path / "whole" / "seed-0", tmp_path / "parts" / "seed-0"
    one, other = load_file(whole / STATE), load_file(parts / STATE)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    logs = [EvaluationLog.load(folder / "evaluations.npz", 300) for folder in (whole, parts)]
    assert logs[0] == logs[1]
    assert logs[0].timesteps == [100, 200, 300]
    assert all(length == 50 for lengths in logs[0].ep_lengths for length in lengths)
    assert read_configuration(whole).env == "gymnasium_robotics:HandReach-v3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"env": "NoHand-v0"},
            "not registered.*an id without a module refers to gymnasium_robotics, write others as module:id",
        ),
        ({"env": "gymnasium:Nothing-v0"}, "not registered"),
        ({"workers": 0}, "workers: got 0"),
        ({"epochs": 0}, "epochs: got 0"),
        ({"epochs": 1, "steps": 1_000}, "epochs: got 1 and 1000 steps"),
        ({"steps": 0}, "steps: got 0"),
        ({"eval_every": 0}, "eval-every: got 0"),
        ({"eval_episodes": -1}, "eval-episodes: got -1"),
        ({"checkpoint_every": 0}, "checkpoint-every: got 0"),
        ({"env": "gymnasium:Endless-v0"}, "no time limit"),
        ({"env": "gymnasium:CartPole-v1"}, "which has no goals, expected observations with"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = EnvSpec("Endless-v0", entry_point=CartPoleEnv)
    monkeypatch.setitem(gymnasium.registry, "Endless-v0", endless)
    with pytest.raises(ValueError, match=message):
        configuration(Args(Path("x"), **options))


def test_too_little_memory_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 1_000 if name == "SC_AVPHYS_PAGES" else ordinary(name))
    with pytest.raises(ValueError, match="of free memory"):
        train_hand.main(Args(tmp_path / "out", seeds=[0, 1], jobs=2))
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_ends_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(train_hand.PRESETS, "laptop", Preset(num_envs=2, batch_size=16, epochs=1, eval_episodes=2))

    def fail(*args: Any, **kwargs: Any) -> None:
        assert len(multiprocessing.active_children()) == 2
        raise FloatingPointError("diverged")

    monkeypatch.setattr(goal_training, "run", fail)
    with pytest.raises(FloatingPointError, match="diverged"):
        train_hand.main(Args(tmp_path, preset="laptop", workers=1, buffer_size=1_000))
    assert multiprocessing.active_children() == []
    with pytest.raises(ValueError, match="goal_gradient_coef"):
        train_hand.main(Args(tmp_path / "x", preset="laptop", goal_gradient_coef=-1, buffer_size=1_000))
    assert multiprocessing.active_children() == []


def test_pictures_need_a_way_to_draw() -> None:
    class Blind(gymnasium.Env[Any, Any]):
        mujoco_renderer = None

        def reset(self, **kwargs: Any) -> Any:
            return {}, {}

        def render(self) -> Any:
            raise RuntimeError("no context")

    with pytest.raises(ValueError, match="MUJOCO_GL"):
        rollout.check_rendering(Blind())
