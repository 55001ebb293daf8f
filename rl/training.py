"""Training with periodic evaluation, checkpoints, and exact resuming."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from rl.checkpoint import check_settings, check_supported, load_checkpoint, save_checkpoint, start_afresh
from rl.logs import read_evaluations
from rl.vec_env import VectorEnvAdapter

try:
    import fcntl
except ImportError:  # not a POSIX system: there folders are not locked
    fcntl = None

LOG, STATE = "evaluations.npz", "state.safetensors"


@dataclass
class EvaluationLog:
    """What was measured so far, as Stable-Baselines3's EvalCallback logs it: one list per episode and time."""

    timesteps: list[int] = field(default_factory=list)
    results: list[list[float]] = field(default_factory=list)
    ep_lengths: list[list[int]] = field(default_factory=list)
    successes: list[list[bool]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp.npz")
        try:
            arrays: dict[str, Any] = {name: np.array(values) for name, values in vars(self).items() if values}
            np.savez(temporary, **arrays)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, until: int) -> EvaluationLog:
        """Those up to step ``until``."""
        stored = read_evaluations(path)
        keep = stored.timesteps <= until
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name][keep].tolist() for name in arrays.files})


@dataclass(frozen=True)
class Episodes:
    """What an agent did in some episodes; ``successes`` is empty where the environment does not know success."""

    returns: list[float]
    lengths: list[int]
    successes: list[bool]


def _check_vec_env(name: str, env: Any) -> None:
    if not isinstance(env, VecEnv):
        raise ValueError(
            f"{name}: got {type(env).__name__}, expected a VecEnv of Stable-Baselines3: DummyVecEnv([make_env]) of "
            "stable_baselines3.common.vec_env for a function that makes a gymnasium.Env, or rl.VectorEnvAdapter(env) "
            "for a VectorEnv"
        )


def _simulation_ids(env: VecEnv) -> set[int]:
    """What is simulated, as far as this process knows."""
    base: Any = env.unwrapped
    parts = [base.env] if isinstance(base, VectorEnvAdapter) else getattr(base, "envs", [])
    return {id(base), *(id(part.unwrapped) for part in parts)}


def run_episodes(model: Any, env: VecEnv, episodes: int, *, seed: int, deterministic: bool = True) -> Episodes:
    """Let an agent act until ``episodes`` episodes have ended.

    Each environment contributes as many as any other, or one more, so that short episodes do not count more often.

    Args:
        model: has ``predict(observations, deterministic=...)``, as Stable-Baselines3's algorithms.
        seed: of the environments.
    """
    _check_vec_env("env", env)
    quota = [episodes // env.num_envs + (i < episodes % env.num_envs) for i in range(env.num_envs)]
    env.seed(seed)
    observations: VecEnvObs = env.reset()
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=int)
    done = Episodes([], [], [])
    while any(quota):
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations, rewards, dones, infos = env.step(actions)
        returns += rewards
        lengths += 1
        for i in np.flatnonzero(dones):
            if quota[i] > 0:
                quota[i] -= 1
                done.returns.append(float(returns[i]))
                done.lengths.append(int(lengths[i]))
                if "is_success" in infos[i]:
                    done.successes.append(bool(infos[i]["is_success"]))
            returns[i] = lengths[i] = 0
    return done


class _Milestones(BaseCallback):
    """Between two rollouts, when all updates are done: evaluates, writes logs and checkpoints, starts afresh."""

    def __init__(self, plan: Plan, eval_env: VecEnv, folder: Path, log: EvaluationLog, report: Callable[[str], None]):
        super().__init__()
        self.plan, self.eval_env, self.folder, self.log, self.report = plan, eval_env, folder, log, report

    def _on_training_start(self) -> None:
        self.checkpointed = self.num_timesteps
        self.begun = False

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if not self.begun:  # at the same place as at a checkpoint, after a rollout has drawn its exploration noise
            start_afresh(self.model)  # type: ignore[arg-type]
            self.begun = True
        if self.num_timesteps > (self.log.timesteps[-1] if self.log.timesteps else 0):
            self._milestone(last=False)

    def _on_training_end(self) -> None:
        self._milestone(last=True)

    def _milestone(self, *, last: bool) -> None:
        step, plan = self.num_timesteps, self.plan
        previous = self.log.timesteps[-1] if self.log.timesteps else 0
        if step // plan.eval_every > previous // plan.eval_every or (last and step > previous):
            self._evaluate(step)
        if last or step // plan.checkpoint_every > self.checkpointed // plan.checkpoint_every:
            start_afresh(self.model)  # type: ignore[arg-type]
            save_checkpoint(self.model, self.folder / STATE, settings=plan.settings(self.model))  # type: ignore[arg-type]
            self.checkpointed = step

    def _evaluate(self, step: int) -> None:
        assert self.model.seed is not None
        seed = int(np.random.SeedSequence([self.model.seed, step, 1]).generate_state(1)[0] >> 1)
        done = run_episodes(self.model, self.eval_env, self.plan.eval_episodes, seed=seed)
        self.log.timesteps.append(step)
        self.log.results.append(done.returns)
        self.log.ep_lengths.append(done.lengths)
        if done.successes:
            self.log.successes.append(done.successes)
        self.log.save(self.folder / LOG)
        self.logger.record("eval/mean_reward", np.mean(done.returns))
        self.logger.record("eval/mean_ep_length", np.mean(done.lengths))
        if done.successes:
            self.logger.record("eval/success_rate", np.mean(done.successes))
        self.logger.dump(step)
        text = f"step {step}: return {np.mean(done.returns):.3f}"
        self.report(text + (f", success {np.mean(done.successes):.3f}" if done.successes else ""))


@dataclass(frozen=True)
class Plan:
    """How long to train and how often to look.

    Attributes:
        steps: environment steps in all. A run that is made longer equals one that was as long from the beginning, if it
            ended at a checkpoint and an evaluation, and nothing follows a schedule.
        eval_every: steps between evaluations; the trained agent is evaluated, too.
        eval_episodes: episodes per evaluation, with the deterministic policy.
        checkpoint_every: steps between checkpoints. It belongs to the configuration: a run starts new episodes and new
            random numbers at each, see :mod:`rl.checkpoint`.
    """

    steps: int
    eval_every: int = 2_000
    eval_episodes: int = 50
    checkpoint_every: int = 20_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")

    def settings(self, model: BaseAlgorithm) -> dict[str, Any]:
        """What has to be the same when a run of a model goes on: all but how long it is, and the seed."""
        return {f"plan.{name}": value for name, value in vars(self).items() if name != "steps"} | {"seed": model.seed}


def holds_run(folder: Path) -> bool:
    """Whether there is anything to go on from, or to lose."""
    return (folder / LOG).exists() or (folder / STATE).exists()


def run(
    model: OffPolicyAlgorithm,
    eval_env: VecEnv,
    plan: Plan,
    folder: str | Path,
    *,
    resume: bool = False,
    callback: MaybeCallback = None,
    report: Callable[[str], None] = lambda text: None,
    log_name: str = "run",
) -> EvaluationLog:
    """Train ``model`` to ``plan.steps``, writing ``evaluations.npz`` and ``state.safetensors`` to ``folder``.

    Args:
        eval_env: where the agent is evaluated; seeded anew each time.
        resume: go on from the last checkpoint in ``folder``, to the identical result.
        callback: a further callback, a list of them or a function, as ``learn`` takes them.
        report: gets a line of text at each evaluation.

    Raises:
        ValueError: if ``folder`` holds a run and ``resume`` is False, or one with other settings, or one that another
            process is at; if ``eval_env`` or ``plan`` is of another type, or the model has no seed or state that no
            checkpoint holds.
    """
    _check_arguments(model, eval_env, plan)
    folder = Path(folder)
    if holds_run(folder) and not resume:
        raise ValueError(f"{folder}: holds a training run; give resume=True to continue it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        log = _resume(model, plan, folder) if resume and (folder / STATE).exists() else EvaluationLog()
        left = plan.steps - model.num_timesteps
        if left > 0:
            milestones = _Milestones(plan, eval_env, folder, log, report)
            callbacks = CallbackList([milestones, *_as_callbacks(callback)])
            model.learn(left, callbacks, reset_num_timesteps=model.num_timesteps == 0, tb_log_name=log_name)
    return log


def _check_arguments(model: OffPolicyAlgorithm, eval_env: Any, plan: Any) -> None:
    """Raise unless the model can be trained by the plan and resumed, and be evaluated in an environment apart."""
    check_supported(model)
    _check_vec_env("eval_env", eval_env)
    if model.env is not None and _simulation_ids(model.env) & _simulation_ids(eval_env):
        raise ValueError(
            "eval_env: got the environment that is trained in, whose episodes an evaluation would break off; make "
            "another one"
        )
    if not isinstance(plan, Plan):
        raise ValueError(f"plan: got {plan!r}, expected an rl.Plan, such as rl.Plan(steps=100_000)")
    if model.seed is None:
        raise ValueError("seed: got None, expected an integer, from which all randomness of a run follows")


def _as_callbacks(given: MaybeCallback) -> list[BaseCallback]:
    """As ``learn`` takes them: none, one, several, or a function."""
    several = given if isinstance(given, list) else [] if given is None else [given]
    return [each if isinstance(each, BaseCallback) else ConvertCallback(each) for each in several]


def _resume(model: OffPolicyAlgorithm, plan: Plan, folder: Path) -> EvaluationLog:
    """Load the last checkpoint; what was measured before it."""
    check_settings(model, folder / STATE, settings=plan.settings(model))
    load_checkpoint(model, folder / STATE)
    path = folder / LOG
    log = EvaluationLog.load(path, model.num_timesteps) if path.exists() else EvaluationLog()
    last = log.timesteps[-1] if log.timesteps else 0
    if last // plan.eval_every < model.num_timesteps // plan.eval_every:
        what = f"ends at step {last}, what was measured later" if path.exists() else "is missing, and what was measured"
        raise ValueError(
            f"{path}: {what} in {model.num_timesteps} steps is lost; put it back, or train in another folder"
        )
    return log


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raise if another process trains in ``folder``; none may begin to, inside."""
    if fcntl is None:
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another process trains here; wait, or choose another folder") from error
        except OSError:  # a file system that has no locks
            pass
        yield
    finally:
        os.close(place)
