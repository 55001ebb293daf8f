"""What the training scripts of goal-conditioned agents share: runs as configurations, seeds in parallel, resuming.

A run is ``OUT/seed-K/``: config.json, evaluations.npz (as Stable-Baselines3's EvalCallback writes it, for
``scripts.evaluate``) and state.safetensors (everything to go on from, and the trained agent).
"""

from __future__ import annotations

import json
import multiprocessing
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import envs as _registered  # noqa: F401  (importing it registers the environments)
import rl
from certify.files import write_atomically
from rl.training import Plan, holds_run, run
from rl.vec_env import VectorEnvAdapter
from scripts import cli

ALGORITHMS: dict[str, Callable[..., OffPolicyAlgorithm]] = {
    "ddpg": rl.DDPG,
    "td3": rl.TD3,
    "sac": rl.SAC,
    "dqn": rl.DQN,
}
_WITHOUT_EFFECT = ("command", "commit", "versions")


@dataclass
class Args:
    """Arguments of every training script."""

    out: Path = cli.arg("folder of the runs, one sub-folder per seed", positional=True)
    seeds: list[int] = cli.arg("one run each", [0])
    jobs: int = cli.arg("runs at a time, each in a process and thread of its own", 1)
    steps: int = cli.arg("environment steps of each run", 60_000)
    goal_gradient_coef: float = cli.arg("alpha of ReenGAGE; 0 is the baseline", 0.0)
    batch_size: int | None = cli.arg("of an update; by default the papers' for these settings", None)
    lr: float | None = cli.arg("learning rate; by default the papers' for these settings", None)
    eval_every: int = cli.arg("steps between evaluations", 2_000)
    eval_episodes: int = cli.arg("episodes per evaluation", 50)
    checkpoint_every: int = cli.arg("steps between checkpoints; part of the configuration", 20_000)
    tensorboard: Path | None = cli.arg("folder for TensorBoard logs", None)
    device: str = cli.arg("cpu, cuda, ...", "cpu")
    resume: bool = cli.arg("continue from the last checkpoints", False)


@dataclass(frozen=True)
class Run:
    """One run as data: enough to build environment and agent again, in another process or later.

    Attributes:
        env: a registered id, and its keyword arguments.
        num_envs: environments that are stepped together.
        algorithm: a key of :data:`ALGORITHMS`, and its keyword arguments as far as they are plain data.
        noise: standard deviation of the normal noise on actions, if any.
        hindsight: keyword arguments of the replay buffer.
    """

    env: str
    env_arguments: dict[str, Any]
    num_envs: int
    algorithm: str
    arguments: dict[str, Any]
    noise: float | None
    hindsight: dict[str, Any]
    plan: dict[str, int]
    seed: int

    def make_env(self, num_envs: int | None = None, render_mode: str | None = None) -> VectorEnvAdapter:
        env = gymnasium.make_vec(
            self.env,
            num_envs=num_envs or self.num_envs,
            vectorization_mode="vector_entry_point",
            autoreset_mode=AutoresetMode.SAME_STEP,
            render_mode=render_mode,
            **self.env_arguments,
        )
        return VectorEnvAdapter(env)

    def make_model(self, device: str, tensorboard: Path | None = None) -> OffPolicyAlgorithm:
        env = self.make_env()
        options: dict[str, Any] = dict(self.arguments)
        if self.noise is not None:
            size = env.action_space.shape or (1,)
            noise = NormalActionNoise(np.zeros(size), np.full(size, self.noise))
            options["action_noise"] = noise if env.num_envs == 1 else VectorizedActionNoise(noise, env.num_envs)
        return ALGORITHMS[self.algorithm](
            "MultiInputPolicy",
            env,
            replay_buffer_class=rl.HerReplayBuffer,
            replay_buffer_kwargs=dict(self.hindsight),
            seed=self.seed,
            device=device,
            tensorboard_log=None if tensorboard is None else str(tensorboard),
            **options | {"policy_kwargs": dict(options.get("policy_kwargs", {}))},
        )

    def train(self, folder: Path, device: str, tensorboard: Path | None) -> None:
        """From the last checkpoint, or from the beginning, to the end of the plan."""
        model, plan = self.make_model(device, tensorboard), Plan(**self.plan)
        eval_env = self.make_env(min(plan.eval_episodes, 64))

        def report(text: str) -> None:
            print(f"seed {self.seed}: {text}", flush=True)

        run(model, eval_env, plan, folder, resume=True, report=report, log_name=f"{folder.parent.name}-{folder.name}")


def plan_of(args: Args) -> dict[str, int]:
    plan = Plan(args.steps, args.eval_every, args.eval_episodes, args.checkpoint_every)
    return dict(vars(plan))


def read_run(folder: Path) -> Run:
    """The configuration of a run on disk."""
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected the folder of one seed of a run, such as RUN/seed-0")
    config = json.loads(path.read_text())
    return Run(**{name: value for name, value in config.items() if name not in _WITHOUT_EFFECT})


def start(run_: Run, folder: Path, command: str, *, resume: bool) -> None:
    """Check or write the configuration of a run. Nothing is written if it does not fit what is there."""
    path = folder / "config.json"
    if path.exists():
        if not resume and holds_run(folder):
            raise ValueError(f"{folder}: holds a run; add --resume to continue it, or choose another folder")
        if holds_run(folder) and (there := read_run(folder)) != run_:
            names = [name for name in vars(run_) if vars(run_)[name] != vars(there)[name]]
            raise ValueError(f"{folder}: holds a run with other {', '.join(names)}; choose another folder")
    packages = ("torch", "stable-baselines3", "gymnasium", "numpy")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    config = vars(run_) | {"command": command, "commit": cli.commit(), "versions": versions}
    write_atomically(path, (json.dumps(config, indent=1) + "\n").encode())


def train_all(runs: list[Run], args: Args, prog: str) -> None:
    """Train each run in ``args.out/seed-K``, ``args.jobs`` at a time."""
    if args.jobs < 1:
        raise ValueError(f"jobs: got {args.jobs}, expected at least 1")
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f"seeds: got {args.seeds}, expected different ones")
    cli.check_device(args.device)
    folders = [args.out / f"seed-{run_.seed}" for run_ in runs]
    runs[0].make_model(args.device)  # errors come before anything is written
    for run_, folder in zip(runs, folders, strict=True):
        start(run_, folder, cli.command_line(prog, args), resume=args.resume)
    work = [(run_, folder, args.device, args.tensorboard) for run_, folder in zip(runs, folders, strict=True)]
    if args.jobs == 1:
        for each in work:
            _train(*each)
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            args.jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            for future in as_completed([pool.submit(_train, *each) for each in work]):
                future.result()
    print(f"wrote {args.out}; see python -m scripts.evaluate {args.out}")


def _train(run_: Run, folder: Path, device: str, tensorboard: Path | None) -> None:
    run_.train(folder, device, tensorboard)
