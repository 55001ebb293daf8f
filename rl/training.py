"""Training with periodic evaluation, checkpoints, and exact resuming."""

from __future__ import annotations

from collections.abc import Callable
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
from rl.files import claimed, replacing
from rl.logs import read_evaluations
from rl.vec_env import VectorEnvAdapter

LOG, STATE = "evaluations.npz", "state.safetensors"


@dataclass
class EvaluationLog:
    """All evaluations so far, as Stable-Baselines3's EvalCallback logs them: one entry per evaluation."""

    timesteps: list[int] = field(default_factory=list)
    results: list[list[float]] = field(default_factory=list)
    ep_lengths: list[list[int]] = field(default_factory=list)
    successes: list[list[bool]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {name: np.array(values) for name, values in vars(self).items() if values}
        with replacing(path, ".npz") as temporary:
            np.savez(temporary, **arrays)

    @classmethod
    def load(cls, path: Path, until: int) -> EvaluationLog:
        """The evaluations up to step ``until``."""
        stored = read_evaluations(path)
        keep = stored.timesteps <= until
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name][keep].tolist() for name in arrays.files})


@dataclass(frozen=True)
class Episodes:
    """The outcome of some episodes; ``successes`` is empty if the environment does not report success."""

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
    """The ids of the simulations behind ``env``, as far as this process has them."""
    base: Any = env.unwrapped
    parts = [base.env] if isinstance(base, VectorEnvAdapter) else getattr(base, "envs", [])
    return {id(base), *(id(part.unwrapped) for part in parts)}


def run_episodes(model: Any, env: VecEnv, episodes: int, *, seed: int, deterministic: bool = True) -> Episodes:
    """Let an agent act until ``episodes`` episodes have ended.

    Environments contribute equally many episodes, up to one, so that short episodes are not overrepresented.

    Args:
        model: has ``predict(observations, deterministic=...)``, as Stable-Baselines3's algorithms do.
        seed: seed of the environments.

    Raises:
        ValueError: if some episodes report success and others do not.
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
    if 0 < len(done.successes) < len(done.returns):
        raise ValueError(
            f"is_success: got it in the infos of {len(done.successes)} of {len(done.returns)} episodes at their end, "
            "expected it in all of them (True or False) or in none; a mean over some is no success rate"
        )
    return done


class _Milestones(BaseCallback):
    """Evaluates, writes logs and checkpoints and starts afresh, between two rollouts, when all updates are done."""

    def __init__(self, plan: Plan, eval_env: VecEnv, folder: Path, log: EvaluationLog, report: Callable[[str], None]):
        super().__init__()
        self.plan, self.eval_env, self.folder, self.log, self.report = plan, eval_env, folder, log, report

    def _on_training_start(self) -> None:
        self.checkpointed = self.num_timesteps
        self.begun = False

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if not self.begun:  # here, as at a checkpoint, where the rollout has drawn its exploration noise
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
        if self.log.timesteps and bool(done.successes) != bool(self.log.successes):
            now, before = ("all", "none") if done.successes else ("none", "all")
            raise ValueError(
                f"is_success: got it in the infos of {now} of the episodes that were evaluated at step {step}, and in "
                f"{before} before; expected it at the end of every episode (True or False), or never"
            )
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
    """How long to train, and how often to evaluate and to save a checkpoint.

    Attributes:
        steps: environment steps in total. A run that is extended equals one that was as long from the beginning if it
            ended at a checkpoint and an evaluation, and nothing follows a schedule.
        eval_every: steps between evaluations; the trained agent is evaluated, too.
        eval_episodes: episodes per evaluation, with the deterministic policy.
        checkpoint_every: steps between checkpoints. It affects the results: at each, a run starts new episodes and new
            random streams, see :mod:`rl.checkpoint`.
    """

    steps: int
    eval_every: int = 2_000
    eval_episodes: int = 50
    checkpoint_every: int = 20_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected at least 1, as an integer")

    def settings(self, model: BaseAlgorithm) -> dict[str, Any]:
        """The settings that must not change when a run is resumed: the seed, and all of the plan but its length."""
        return {f"plan.{name}": value for name, value in vars(self).items() if name != "steps"} | {"seed": model.seed}


def holds_run(folder: Path) -> bool:
    """Whether ``folder`` holds a run, which could be resumed or overwritten."""
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
        resume: continue from the last checkpoint in ``folder``, to the identical result.
        callback: a further callback, a list of callbacks or a function, as for ``learn``.
        report: called with a line of text at each evaluation.

    Raises:
        ValueError: if ``folder`` holds a run and ``resume`` is False, or a run with other settings, or one that another
            process is training; if ``eval_env`` or ``plan`` is of another type; if the model has no seed, or has state
            that checkpoints do not hold.
    """
    _check_arguments(model, eval_env, plan)
    folder = Path(folder)
    if holds_run(folder) and not resume:
        raise ValueError(f"{folder}: holds a training run; give resume=True to continue it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder):
        log = _resume(model, plan, folder) if resume and (folder / STATE).exists() else EvaluationLog()
        left = plan.steps - model.num_timesteps
        if left > 0:
            milestones = _Milestones(plan, eval_env, folder, log, report)
            callbacks = CallbackList([milestones, *_as_callbacks(callback)])
            model.learn(left, callbacks, reset_num_timesteps=model.num_timesteps == 0, tb_log_name=log_name)
    return log


def _check_arguments(model: OffPolicyAlgorithm, eval_env: Any, plan: Any) -> None:
    """Raise unless a run of the model can be resumed, and evaluated in a separate environment."""
    check_supported(model)
    _check_vec_env("eval_env", eval_env)
    if model.env is not None and _simulation_ids(model.env) & _simulation_ids(eval_env):
        raise ValueError(
            "eval_env: got the training environment, whose episodes an evaluation would cut short; make a separate "
            "environment"
        )
    if not isinstance(plan, Plan):
        raise ValueError(f"plan: got {plan!r}, expected an rl.Plan, such as rl.Plan(steps=100_000)")
    if model.seed is None:
        raise ValueError("seed: got None, expected an integer, which determines all randomness of a run")


def _as_callbacks(given: MaybeCallback) -> list[BaseCallback]:
    """A list of callbacks from what ``learn`` accepts: none, one, several, or a function."""
    several = given if isinstance(given, list) else [] if given is None else [given]
    return [each if isinstance(each, BaseCallback) else ConvertCallback(each) for each in several]


def _resume(model: OffPolicyAlgorithm, plan: Plan, folder: Path) -> EvaluationLog:
    """Load the last checkpoint; returns the evaluations up to it."""
    check_settings(model, folder / STATE, settings=plan.settings(model))
    load_checkpoint(model, folder / STATE)
    path = folder / LOG
    log = EvaluationLog.load(path, model.num_timesteps) if path.exists() else EvaluationLog()
    last = log.timesteps[-1] if log.timesteps else 0
    if last // plan.eval_every < model.num_timesteps // plan.eval_every:
        what = f"ends at step {last}" if path.exists() else "is missing"
        raise ValueError(
            f"{path}: {what}, so evaluations of a run of {model.num_timesteps} steps are lost; restore the file, or "
            "train in another folder"
        )
    return log
