"""The scripts that train goal-conditioned agents, as a user runs them: seeds, kills, refusals, pictures."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rl import files
from rl.logs import read_method
from scripts import rollout, train_bit_flipping, train_continuous_seek
from scripts.parts import cli, goal_training

ROOT = Path(__file__).parent.parent
SEEK, BITS = train_continuous_seek, train_bit_flipping
SMALL = {
    SEEK: "--d 2 --eps 1 --episode-steps 5 --steps 1300 --eval-every 200 --eval-episodes 4 --checkpoint-every 1100"
    " --batch-size 16 --layers 8 8 --goal-gradient-coef 0.2",
    BITS: "--d 4 --steps 640 --eval-every 128 --eval-episodes 4 --checkpoint-every 128 --batch-size 16"
    " --goal-gradient-coef 0.5 --temperature 0.5",
}
both = pytest.mark.parametrize("script", [SEEK, BITS], ids=["seek", "bits"])


def arguments(script: ModuleType, out: Path, options: str = "") -> list[str]:
    return [str(out), *SMALL[script].split(), *options.split()]


def train(script: ModuleType, out: Path, options: str = "") -> None:
    script.main(cli.parse_args(script.Args, arguments(script, out, options), script.__name__))


def state(folder: Path) -> dict[str, Any]:
    """What a run came to: its evaluations and all tensors."""
    with np.load(folder / "evaluations.npz", allow_pickle=False) as log:
        values = {name: log[name].tolist() for name in log.files}
    tensors = load_file(folder / "state.safetensors")
    return values | {name: (tensor.dtype, tensor.tolist()) for name, tensor in tensors.items()}


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> dict[ModuleType, Path]:
    """A run of each script with seed 0."""
    folders = {script: tmp_path_factory.mktemp(script.__name__) / "run" for script in SMALL}
    for script, folder in folders.items():
        train(script, folder)
    return folders


@both
def test_a_run_leaves_its_configuration_its_evaluations_and_its_state(finished, script):
    folder = finished[script]
    assert sorted(path.name for path in (folder / "seed-0").iterdir()) == [
        "config.json",
        "evaluations.npz",
        "state.safetensors",
    ]
    method = read_method(folder, "success")
    expected = [*range(200, 1201, 200), 1300] if script is SEEK else [*range(128, 641, 128)]
    assert method.timesteps.tolist() == expected
    assert method.scores.shape == (1, len(expected))
    assert ((method.scores >= 0) & (method.scores <= 1)).all()
    config = json.loads((folder / "seed-0/config.json").read_text())
    assert config["versions"].keys() >= {"python", "torch", "stable-baselines3"}
    args = cli.parse_args(script.Args, arguments(script, folder), "")
    assert cli.parse_args(script.Args, shlex.split(config["command"])[3:], "") == args
    assert goal_training.read_configuration(folder / "seed-0") == script.configuration(args)


@both
def test_kill_in_the_middle_of_a_run(tmp_path, finished, script):
    """SIGKILL at an arbitrary moment after a checkpoint; the resumed run ends in the same evaluations and tensors."""
    command = [sys.executable, "-m", script.__name__, *arguments(script, tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "seed-0"
    while process.poll() is None and not (folder / "state.safetensors").exists():
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert state(folder) != state(finished[script] / "seed-0"), "the run was over before it could be killed"
    with pytest.raises(ValueError, match="holds a run; add --resume"):
        train(script, tmp_path)
    train(script, tmp_path, "--resume")
    assert state(folder) == state(finished[script] / "seed-0")


@both
def test_resuming_with_other_arguments_is_refused(finished, script):
    before = state(finished[script] / "seed-0")
    with pytest.raises(
        ValueError, match=r"holds a run with arguments\.learning_rate = .*, not 0\.01; choose another folder"
    ):
        train(script, finished[script], "--resume --lr 0.01")
    with pytest.raises(ValueError, match=r"with env_arguments\.d = .*, not 3, .*arguments\.\w+ = .*; choose"):
        train(script, finished[script], "--resume --d 3" if script is BITS else "--resume --d 3 --lr 0.01")
    assert state(finished[script] / "seed-0") == before


def test_seeds_in_parallel(tmp_path, finished):
    train(BITS, tmp_path, "--seeds 1 0 --jobs 2")
    assert state(tmp_path / "seed-0") == state(finished[BITS] / "seed-0")
    assert state(tmp_path / "seed-1") != state(tmp_path / "seed-0")
    method = read_method(tmp_path, "return")
    assert method.seeds == (0, 1)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_interrupt_ends_all_seeds(tmp_path, sent, status):
    command = [
        sys.executable,
        "-m",
        BITS.__name__,
        *arguments(BITS, tmp_path, "--steps 10000000 --jobs 2 --seeds 0 1 2"),
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a background shell has ignored
    )
    while process.poll() is None and not (tmp_path / "seed-1/state.safetensors").exists():
        time.sleep(0.01)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert "with --resume to continue" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "seed-2/evaluations.npz").exists()


def test_killing_the_command_ends_all_seeds(tmp_path):
    """Otherwise its workers would train on, and ``--resume`` would find the folders in use."""
    words = arguments(BITS, tmp_path, "--steps 10000000 --jobs 2 --seeds 0 1")
    command = [sys.executable, "-m", BITS.__name__, *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    folders = tmp_path / "seed-0", tmp_path / "seed-1"
    try:
        while process.poll() is None and not all((folder / "state.safetensors").exists() for folder in folders):
            time.sleep(0.01)
        assert process.poll() is None, "the run was over before it could be killed"
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while not all(map(_is_free, folders)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert all(map(_is_free, folders))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _is_free(folder: Path) -> bool:
    """Whether no process trains in a folder."""
    try:
        with files.claimed(folder):
            return True
    except ValueError:
        return False


def test_one_refused_seed_keeps_the_others_from_starting(tmp_path):
    train(BITS, tmp_path, "--seeds 1")
    with pytest.raises(ValueError, match=r"seed-1: holds a run with arguments\.learning_rate = "):
        train(BITS, tmp_path, "--seeds 0 1 --resume --lr 0.01")
    assert [path.name for path in tmp_path.iterdir()] == ["seed-1"]


BAD = [
    (SEEK, "--d 0", "d: got 0"),
    (SEEK, "--steps 0", "steps: got 0, expected at least 1"),
    (SEEK, "--eval-every 0", "eval_every: got 0"),
    (SEEK, "--batch-size 0", "batch-size: got 0"),
    (SEEK, "--lr 0", r"lr: got 0\.0, expected a number above 0"),
    (SEEK, "--lr nan", "lr: got nan"),
    (SEEK, "--goal-gradient-coef -1", r"goal_gradient_coef: got -1\.0"),
    (SEEK, "--seeds 3 3", r"seeds: got \[3, 3\], expected one or more distinct numbers"),
    (SEEK, "--seeds", r"seeds: got \[\]"),
    (SEEK, "--seeds -1", r"seeds: got \[-1\]"),
    (SEEK, "--seeds 4294967296", r"seeds: got \[4294967296\], expected .* to 2\^32 - 1"),
    (SEEK, "--jobs 0", "jobs: got 0"),
    (SEEK, "--batch-size 99999999999999999999", "batch-size: got 99999999999999999999, expected .*, at most 2\\^24"),
    (SEEK, "--num-envs 0", "num_envs: got 0"),
    (SEEK, "--bound 0", "bound: got 0"),
    (SEEK, "--eps -1", "eps: got -1"),
    (SEEK, "--episode-steps 0", "steps: got 0"),
    (SEEK, "--layers 8 0", r"layers: got \[8, 0\]"),
    (SEEK, "--device warp", "device: got 'warp', which is not available here"),
    (BITS, "--d 0", "d: got 0"),
    (BITS, "--temperature -1 --goal-gradient-coef 0.5", r"temperature: got -1\.0"),
    (BITS, "--temperature 1 --goal-gradient-coef 0", "--temperature: has no effect with --goal-gradient-coef 0"),
    (
        BITS,
        "--soft-target both --goal-gradient-coef 0 --temperature 0.5",
        "--soft-target: has no effect with --goal-gradient-coef 0",
    ),
    (BITS, "--tensorboard logs", "tensorboard: not installed"),
]


@pytest.mark.parametrize(("script", "options", "message"), BAD, ids=[case[1] for case in BAD])
def test_bad_input_leaves_no_trace(tmp_path, monkeypatch, capsys, script, options, message):
    monkeypatch.setattr(goal_training, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        cli.run(script.main, script.Args, script.__name__, arguments(script, tmp_path / "out", options))
    assert stop.value.code == 1
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


# --- published hyperparameters


@pytest.mark.parametrize(
    ("algorithm", "coef", "published"),
    [
        ("ddpg", 0.0, [(512, 0.001), (256, 0.0005), (256, 0.0005)]),
        ("ddpg", 0.1, [(512, 0.0015), (512, 0.001), (128, 0.0005)]),
        ("ddpg", 0.2, [(512, 0.0015), (512, 0.001), (128, 0.0005)]),
        ("ddpg", 0.3, [(512, 0.0015), (512, 0.001), (128, 0.0005)]),
        ("sac", 0.0, [(8192, 0.0025), (1024, 0.0015), (4096, 0.0005)]),
        ("sac", 0.1, [(4096, 0.0025), (1024, 0.0025), (8192, 0.0025)]),
        ("sac", 0.2, [(2048, 0.0025), (512, 0.0025), (8192, 0.0025)]),
        ("sac", 0.3, [(2048, 0.0025), (512, 0.0025), (8192, 0.0025)]),
    ],
)
def test_best_hyperparameters_of_tables_g2_and_g3(algorithm, coef, published):
    for d, expected in zip((5, 10, 20), published, strict=True):
        args = SEEK.Args(out=Path(), d=d, algorithm=algorithm, goal_gradient_coef=coef)
        assert SEEK.best(args) == expected
        chosen = SEEK.configuration(args).arguments
        assert (chosen["batch_size"], chosen["learning_rate"]) == expected


def test_fixed_hyperparameters_of_table_g1():
    run = SEEK.configuration(SEEK.Args(out=Path(), steps=2_000_000))
    model = run.make_model("cpu")
    assert run.env_arguments == {"d": 20, "bound": 5.0, "eps": 0.1, "steps": 10}
    assert model.replay_buffer.buffer_size == 1_000_000
    assert (model.train_freq.frequency, model.train_freq.unit.value, model.gradient_steps) == (1, "step", 1)
    assert (model.learning_starts, model.gamma, model.tau) == (1000, 0.95, 0.005)
    assert model.action_noise._sigma.tolist() == [0.03] * 20
    for network in (model.actor.mu, model.critic.q_networks[0]):
        widths = [layer.out_features for layer in network if isinstance(layer, torch.nn.Linear)]
        assert widths[:-1] == [256, 256]
        assert {type(layer) for layer in network} <= {torch.nn.Linear, torch.nn.ReLU, torch.nn.Tanh}
    assert (model.replay_buffer.n_sampled_goal, model.replay_buffer.goal_selection_strategy.name) == (4, "FUTURE")
    assert (run.plan["eval_every"], run.plan["eval_episodes"]) == (2_000, 50)


def test_a_cycle_of_bit_flipping_is_16_episodes_40_updates_and_one_step_of_the_target(tmp_path):
    args = cli.parse_args(BITS.Args, arguments(BITS, tmp_path), "")
    model = BITS.configuration(args).make_model("cpu")
    first = [value.detach().clone() for value in model.q_net.parameters()]
    model.learn(64)  # 16 episodes of 4 steps
    assert (model.num_timesteps, model._episode_num, model._n_updates) == (64, 16, 40)
    online = [value.detach().clone() for value in model.q_net.parameters()]
    torch.testing.assert_close([value.detach() for value in model.q_net_target.parameters()], first)
    model.learn(64, reset_num_timesteps=False)
    assert (model._episode_num, model._n_updates, model.exploration_rate) == (32, 80, 0.2)
    expected = [0.95 * before + 0.05 * after for before, after in zip(first, online, strict=True)]
    torch.testing.assert_close([value.detach() for value in model.q_net_target.parameters()], expected)


# --- pictures


@both
def test_rollout(finished, script, capsys, tmp_path):
    args = rollout.Args(run=finished[script] / "seed-0", episodes=2, out=tmp_path / "new/film.gif", fps=10)
    rollout.main(args)
    printed = capsys.readouterr().out
    length = 5 if script is SEEK else 4
    returns = re.findall(rf"episode \d: return (-?\d+\.\d+), {length} steps, (?:no )?success\n", printed)
    assert len(returns) == 2
    with Image.open(tmp_path / "new/film.gif") as image:
        durations = []
        for frame in range(image.n_frames):
            image.seek(frame)
            durations.append(image.info["duration"])
        assert image.info["loop"] == 0
    # equal pictures in succession are one frame that stays longer
    assert sum(durations) == 100 * 2 * (length + rollout.LAST)
    rollout.main(dataclasses.replace(args, out=tmp_path / "again.gif"))
    assert (tmp_path / "again.gif").read_bytes() == (tmp_path / "new/film.gif").read_bytes()
    assert capsys.readouterr().out.splitlines()[:2] == printed.splitlines()[:2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes: got 0"),
        ({"fps": 0.0}, r"fps: got 0\.0"),
        ({"fps": float("nan")}, "fps: got nan"),
        ({"seed": -1}, "seed: got -1"),
        ({"out": Path("film.mp4")}, r"out: got film\.mp4, expected a name that ends in \.gif"),
    ],
)
def test_rollout_with_bad_arguments(finished, options, message):
    with pytest.raises(ValueError, match=message):
        rollout.main(rollout.Args(run=finished[BITS] / "seed-0", **options))
    assert not (finished[BITS] / "seed-0/rollout.gif").exists()


def test_rollout_of_what_is_not_there(tmp_path, finished):
    with pytest.raises(FileNotFoundError, match=r"no such file; give the folder of one seed of a run"):
        rollout.main(rollout.Args(run=finished[BITS]))
    config = (finished[BITS] / "seed-0/config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(FileNotFoundError, match="no such checkpoint; train first"):
        rollout.main(rollout.Args(run=tmp_path))
    (tmp_path / "state.safetensors").write_bytes((finished[BITS] / "seed-0/state.safetensors").read_bytes()[:-50])
    with pytest.raises(ValueError, match="truncated or not a checkpoint"):
        rollout.main(rollout.Args(run=tmp_path))
