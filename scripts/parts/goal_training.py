"""Shared by the training scripts of goal-conditioned agents: runs as configurations, parallel seeds, resuming.

A run is ``OUT/seed-K/``: config.json, evaluations.npz (as Stable-Baselines3's EvalCallback writes it, for
``scripts.evaluate``) and state.safetensors (everything needed to resume, including the trained agent).
"""

from __future__ import annotations

import json
import math
import multiprocessing
import platform
import shlex
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import envs as _registered  # noqa: F401  (importing it registers the environments)
import rl
from certify.files import check_writable, differences, write_atomically
from certify.processes import begin_worker
from envs.parallel import ParallelVectorEnv
from rl.logs import read_config
from rl.noise import VectorizedNormalNoise
from rl.normalization import NormalizedExtractor
from rl.training import Plan, holds_run, run
from rl.vec_env import VectorEnvAdapter
from scripts.parts import cli

ALGORITHMS: dict[str, Callable[..., OffPolicyAlgorithm]] = {
    "ddpg": rl.DDPG,
    "td3": rl.TD3,
    "sac": rl.SAC,
    "dqn": rl.DQN,
}
_WITHOUT_EFFECT = ("command", "commit", "versions")


@dataclass
class RunArgs:
    """Arguments of every training script."""

    out: Path = cli.arg("folder of the runs, with one subfolder per seed", positional=True)
    seeds: list[int] = cli.arg("random seeds, one run for each", [0])
    jobs: int = cli.arg("number of runs in parallel; if more than one, each in a single-threaded process", 1)
    goal_gradient_coef: float = cli.arg("alpha of ReenGAGE; 0 is the baseline", 0.0)
    batch_size: int | None = cli.arg("transitions per update; by default the papers' for these settings", None)
    lr: float | None = cli.arg("learning rate; by default the papers' for these settings", None)
    tensorboard: Path | None = cli.arg("folder for TensorBoard logs", None)
    device: str = cli.arg("cpu, cuda, ..., or auto (cuda if available)", "cpu")
    cuda_graphs: bool = cli.arg("record updates as CUDA graphs and replay them, which reduces CPU load", False)
    resume: bool = cli.arg("continue from the last checkpoints", False)


@dataclass
class Args(RunArgs):
    """Arguments of training scripts whose schedule is given in steps."""

    steps: int = cli.arg("environment steps of each run", 60_000)
    eval_every: int = cli.arg("steps between evaluations", 2_000)
    eval_episodes: int = cli.arg("episodes per evaluation", 50)
    checkpoint_every: int = cli.arg("steps between checkpoints; part of the run's configuration", 20_000)


@dataclass(frozen=True)
class Run:
    """One run as data: enough to rebuild environment and agent, later or in another process.

    Attributes:
        env: a registered id (``"module:id"`` if a module registers it).
        env_arguments: its keyword arguments. Environments without a native vector version are stepped in worker
            processes.
        num_envs: number of environments that are stepped together.
        algorithm: a key of :data:`ALGORITHMS`.
        arguments: its keyword arguments, as far as they are plain data.
        plan: keyword arguments of :class:`rl.Plan`.
        noise: standard deviation of the Gaussian action noise, if any.
        goal_gradient: keyword arguments of :class:`rl.GoalGradient`.
        hindsight: keyword arguments of the replay buffer; by default the papers' four relabelled transitions per real
            one. None for sets of goals, which are not relabelled.
        policy: name of the policy class.
    """

    env: str
    env_arguments: dict[str, Any]
    num_envs: int
    algorithm: str
    arguments: dict[str, Any]
    plan: dict[str, int]
    noise: float | None = None
    goal_gradient: dict[str, Any] = field(default_factory=dict)
    hindsight: dict[str, Any] | None = field(
        default_factory=lambda: {"n_sampled_goal": 4, "goal_selection_strategy": "future"}
    )
    policy: str = "MultiInputPolicy"
    seed: int = 0

    def make_env(self, num_envs: int | None = None, workers: int = 1) -> VectorEnvAdapter:
        num_envs = num_envs or self.num_envs
        if spec_of(self.env).vector_entry_point is None:
            return VectorEnvAdapter(ParallelVectorEnv(self.env, num_envs, min(workers, num_envs), **self.env_arguments))
        env = gymnasium.make_vec(
            self.env,
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            autoreset_mode=AutoresetMode.SAME_STEP,
            **self.env_arguments,
        )
        return VectorEnvAdapter(env)

    def make_model(
        self, device: str, tensorboard: Path | None = None, workers: int = 1, *, cuda_graphs: bool = False
    ) -> OffPolicyAlgorithm:
        env = self.make_env(workers=workers)
        options: dict[str, Any] = dict(self.arguments)
        if self.noise is not None:
            size = env.action_space.shape or (1,)
            normal = np.zeros(size), np.full(size, self.noise)
            several = env.num_envs > 1
            options["action_noise"] = (
                VectorizedNormalNoise(*normal, env.num_envs) if several else NormalActionNoise(*normal)
            )
        if self.goal_gradient:
            options["goal_gradient"] = rl.GoalGradient(**self.goal_gradient)
        policy = dict(options.get("policy_kwargs", {}))
        if policy.get("features_extractor_class") == NormalizedExtractor.__name__:
            policy["features_extractor_class"] = NormalizedExtractor
        relabels = self.hindsight is not None
        if not relabels:  # sets of goals are large: allocate only what the run fills, which does not change results
            steps = self.plan["steps"] + 2 * env.num_envs
            options["buffer_size"] = min(options["buffer_size"], steps)
        try:
            return ALGORITHMS[self.algorithm](
                self.policy,
                env,
                replay_buffer_class=rl.HerReplayBuffer if relabels else rl.GoalSetReplayBuffer,
                replay_buffer_kwargs=dict(self.hindsight or {}),
                seed=self.seed,
                device=device,
                tensorboard_log=None if tensorboard is None else str(tensorboard),
                cuda_graphs=cuda_graphs,
                **options | {"policy_kwargs": policy},
            )
        except BaseException:
            env.close()
            raise

    def train(self, folder: Path, args: RunArgs, workers: int = 1) -> None:
        """Train to the end of the plan, from the last checkpoint if there is one."""
        plan = Plan(**self.plan)

        def report(text: str) -> None:
            print(f"seed {self.seed}: {text}", flush=True)

        name = f"{folder.parent.name}-{folder.name}"
        with ExitStack() as stack:  # environments may own processes
            model = self.make_model(args.device, args.tensorboard, workers, cuda_graphs=args.cuda_graphs)
            assert model.env is not None
            stack.callback(model.env.close)
            eval_env = self.make_env(min(plan.eval_episodes, 64), workers)
            stack.callback(eval_env.close)
            run(model, eval_env, plan, folder, resume=True, report=report, log_name=name)


def spec_of(env: str) -> EnvSpec:
    """The registration of an id; ``"module:id"`` imports the module first.

    Raises:
        ImportError: if the module is not installed.
        ValueError: if nothing is registered under the id.
    """
    module, _, env_id = env.rpartition(":")
    if module:
        import_module(module)
    try:
        return gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        raise ValueError(f"env: got {env!r}, which is not registered ({error})") from error


def time_limit(env: str) -> int | None:
    """The maximum length of an episode, from the registration or, if that has none, from an environment."""
    spec = spec_of(env)
    if spec.max_episode_steps is not None:
        return spec.max_episode_steps
    made = gymnasium.make(spec)
    made.close()
    return None if made.spec is None else made.spec.max_episode_steps


def plan_of(args: Args) -> dict[str, int]:
    plan = Plan(args.steps, args.eval_every, args.eval_episodes, args.checkpoint_every)
    return dict(vars(plan))


def read_configuration(folder: Path) -> Run:
    """The configuration of a run on disk."""
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file; give the folder of one seed of a run of a training script, such as RUN/seed-0 "
            "(one of rl.run has none: load its agent by rl.load_checkpoint(model, RUN/state.safetensors, buffer=False))"
        )
    config = {name: value for name, value in read_config(folder).items() if name not in _WITHOUT_EFFECT}
    known = {each.name for each in fields(Run)}
    needed = {each.name for each in fields(Run) if each.default is MISSING and each.default_factory is MISSING}
    if wrong := sorted((config.keys() - known) | (needed - config.keys())):
        raise ValueError(f"{path}: unknown or missing {', '.join(wrong)}, expected the configuration of a training run")
    return Run(**config)


def check(args: RunArgs) -> None:
    """Raise for illegal arguments that the parts of a run would not reject themselves."""
    for name in ("jobs", "batch_size"):
        value = getattr(args, name)
        if value is not None and not 1 <= value <= 1 << 24:
            raise ValueError(f"{name.replace('_', '-')}: got {value}, expected at least 1, at most 2^24")
    if args.lr is not None and not (math.isfinite(args.lr) and args.lr > 0):
        raise ValueError(f"lr: got {args.lr}, expected a number above 0")
    if not args.seeds or len(set(args.seeds)) < len(args.seeds) or not all(0 <= seed < 1 << 32 for seed in args.seeds):
        raise ValueError(f"seeds: got {args.seeds}, expected one or more distinct numbers from 0 to 2^32 - 1")
    if args.tensorboard is not None and find_spec("tensorboard") is None:
        raise ImportError('tensorboard: not installed; run "pip install tensorboard", or leave out --tensorboard')
    if args.device != "auto":
        cli.check_device(args.device)


def _check_same(folder: Path, there: Run, run_: Run) -> None:
    """Raise if the run in a folder differs from this one in anything but its number of steps."""
    there = replace(there, plan=there.plan | {"steps": run_.plan["steps"]})
    if what := differences(vars(there), vars(run_)):
        raise ValueError(f"{folder}: holds a run with {what}; choose another folder")


def check_folder(run_: Run, folder: Path, *, resume: bool) -> None:
    """Raise if the folder holds a run that this one would overwrite, or cannot continue."""
    if not holds_run(folder):
        return
    if not resume:
        raise ValueError(f"{folder}: holds a run; add --resume to continue it, or choose another folder")
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder}: holds a run without its config.json; restore the file, or choose another folder")
    _check_same(folder, read_configuration(folder), run_)


def check_siblings(run_: Run, out: Path) -> None:
    """Raise if other seeds in the folder belong to another configuration: they would be evaluated as one method."""
    for folder in sorted(out.glob("seed-*")):
        if holds_run(folder) and (folder / "config.json").exists():
            _check_same(folder, replace(read_configuration(folder), seed=run_.seed), run_)


def write_config(run_: Run, folder: Path, command: str) -> None:
    packages = ("torch", "stable-baselines3", "gymnasium", "numpy")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    config = vars(run_) | {"command": command, "commit": cli.commit(), "versions": versions}
    write_atomically(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())


def train_all(run_: Run, args: RunArgs, prog: str, workers: int = 1) -> None:
    """Train ``run_`` with each of ``args.seeds`` in ``args.out/seed-K``, ``args.jobs`` at a time.

    All checks come before anything is written.

    Args:
        workers: simulation processes of each run, for environments without a native vector version. Results do not
            depend on their number.
    """
    check(args)
    Plan(**run_.plan)
    work = {args.out / f"seed-{seed}": replace(run_, seed=seed) for seed in args.seeds}
    # one simulation is enough to check the arguments
    simulated = spec_of(run_.env).vector_entry_point is None
    model = (replace(run_, num_envs=1) if simulated else run_).make_model(args.device, cuda_graphs=args.cuda_graphs)
    assert model.env is not None
    model.env.close()
    check_siblings(run_, args.out)
    for folder, each in work.items():
        check_folder(each, folder, resume=args.resume)
    steps, starts = run_.plan["steps"], run_.arguments["learning_starts"]
    if steps <= starts:
        print(f"note: nothing is learned in {steps} steps, as the first update follows step {starts}; increase --steps")
    check_writable(args.out)
    for folder, each in work.items():
        write_config(each, folder, cli.command_line(prog, args))
    if args.jobs == 1:
        for folder, each in work.items():
            each.train(folder, args, workers)
    else:
        _train_in_parallel(work, args, workers)
    metric = " --metric return" if run_.hindsight is None else ""  # there is no success with sets of goals
    print(
        f"wrote {args.out}; for learning curves, run 'python -m scripts.evaluate {shlex.quote(str(args.out))}{metric}'"
    )


def _prepare_worker(modules: list[str]) -> None:
    begin_worker()
    cli.import_modules(modules)
    torch.set_num_threads(1)


def _train_in_parallel(work: dict[Path, Run], args: RunArgs, workers: int) -> None:
    context = multiprocessing.get_context("spawn")
    own = list(cli.imported)
    with ProcessPoolExecutor(min(args.jobs, len(work)), context, initializer=_prepare_worker, initargs=(own,)) as pool:
        try:
            jobs = [pool.submit(each.train, folder, args, workers) for folder, each in work.items()]
            for job in as_completed(jobs):
                job.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a run was killed from outside, possibly for lack of memory; use --resume with fewer --jobs"
            ) from error
        except BaseException:
            # pending runs must not start now; those in progress can be resumed from their checkpoints
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
