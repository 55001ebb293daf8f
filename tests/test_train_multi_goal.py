"""The script that trains on environments with many goals at a time, as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import envs  # noqa: F401  (registers them)
import rl
from rl.logs import read_method
from scripts import evaluate, rollout
from scripts import train_multi_goal as script
from scripts.parts import cli, goal_training

SMALL = (
    "--max-goals 5 --head 8 --embedding 4 --steps 1100 --eval-every 500 --eval-episodes 3"
    " --checkpoint-every 1000 --batch-size 8 --goal-gradient-coef 0.1"
)


def train(out: Path, options: str = "") -> None:
    script.main(
        cli.parse_args(script.Args, [str(out), *SMALL.split(), "--layers", "8", *options.split()], script.__name__)
    )


def log(folder: Path) -> dict[str, Any]:
    with np.load(folder / "seed-0/evaluations.npz", allow_pickle=False) as arrays:
        return {name: arrays[name].tolist() for name in arrays.files}


@pytest.mark.parametrize("env", ["DriveSeek-v0", "NoisySeek-v0"])
def test_a_run_from_training_to_pictures(tmp_path: Path, capsys: Any, env: str) -> None:
    """A run that is made longer is one that was as long from the beginning."""
    train(tmp_path / "whole", f"--env {env}")
    train(tmp_path / "parts", f"--env {env} --steps 1000")
    assert "note: nothing is learned in 1000 steps, as the first update follows step 1000" in capsys.readouterr().out
    train(tmp_path / "parts", f"--env {env} --resume")
    assert "--metric return" in capsys.readouterr().out
    assert log(tmp_path / "whole") == log(tmp_path / "parts")
    assert "successes" not in log(tmp_path / "whole")
    assert read_method(tmp_path / "whole", "return").timesteps.tolist() == [500, 1000, 1100]
    evaluate.main(evaluate.Args(runs=[tmp_path / "whole"], metric="return", resamples=50))
    rollout.main(rollout.Args(run=tmp_path / "whole/seed-0", episodes=1))
    printed = capsys.readouterr().out
    assert re.search(r"episode 0: return \d+\.\d+, 40 steps\n", printed)
    assert env in printed


@pytest.mark.parametrize("options", ["--encoder cnn", "--encoder attention --width 8 --blocks 1", "--unshared"])
def test_other_networks(tmp_path: Path, options: str) -> None:
    args = cli.parse_args(script.Args, [str(tmp_path), *SMALL.split(), *options.split()], "")
    model: Any = script.configuration(args).make_model("cpu")
    assert model.policy.share_encoder == ("--unshared" not in options)
    observation = model.env.reset()
    assert model.env.action_space.contains(model.predict(observation, deterministic=True)[0][0])


def test_hyperparameters_of_table_g4() -> None:
    for env, noise in (("DriveSeek-v0", 0.05), ("NoisySeek-v0", 0.1)):
        run = script.configuration(script.Args(out=Path(), env=env))
        assert run.env_arguments == {"max_goals": 200}
        assert (run.plan["steps"], run.plan["eval_every"], run.plan["eval_episodes"]) == (160_000, 4_000, 100)
        model: Any = run.make_model("cpu")
        assert (model.learning_starts, model.gamma, model.tau, model.batch_size) == (1000, 0.95, 0.005, 256)
        assert (model.train_freq.frequency, model.train_freq.unit.value, model.gradient_steps) == (1, "step", 1)
        assert model.learning_rate == 0.001
        assert model.action_noise._sigma.tolist() == [noise] * model.action_space.shape[0]
        assert 160_000 < model.replay_buffer.buffer_size < 160_010  # as good as 1,000,000
        encoder = model.critic.features_extractor
        assert isinstance(model.goal_gradient, rl.GateGradient)
        for network, widths in (
            (encoder.encoder, [400, 400, 20]),
            (model.actor.mu, [400, model.action_space.shape[0]]),
            (model.critic.q_networks[0], [400, 1]),
        ):
            assert [layer.out_features for layer in network if isinstance(layer, torch.nn.Linear)] == widths


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--max-goals 0", "max_goals: got 0"),
        ("--layers 8 0", r"layers: got \[8, 0\]"),
        ("--encoder attention --layers 8", "layers: applies to --encoder deep-sets, not to attention"),
        ("--encoder cnn --width 8", "width: applies to --encoder attention, not to cnn"),
        ("--blocks 1", "blocks: applies to --encoder attention, not to deep-sets"),
        ("--num-envs 0", "num_envs: got 0"),
        ("--eval-every 0", "eval_every: got 0"),
        ("--batch-size 0", "batch-size: got 0"),
        ("--lr -1", "lr: got"),
        ("--head 0", r"head: got \[0\]"),
        ("--embedding 0", r"embedding_dim: got \[0\]"),
        ("--env NoisySeek-v0 --encoder cnn", "expected 2 and 6 as in DriveSeek"),
        ("--goal-gradient-coef -1", r"goal_gradient_coef: got -1\.0"),
    ],
)
def test_bad_input_leaves_no_trace(tmp_path: Path, capsys: Any, options: str, message: str) -> None:
    arguments = [str(tmp_path / "out"), *SMALL.split(), *options.split()]
    with pytest.raises(SystemExit):
        cli.run(script.main, script.Args, script.__name__, arguments)
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_runs_of_one_goal_read_as_before(tmp_path: Path) -> None:
    """Configurations from before there were sets of goals."""
    run = goal_training.Run("ContinuousSeek-v0", {}, 1, "ddpg", {}, {"steps": 1})
    config = {name: value for name, value in vars(run).items() if name != "policy"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert goal_training.read_configuration(tmp_path) == run
