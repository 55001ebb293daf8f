"""Train a robot hand, or any other goal environment of gymnasium-robotics, with DDPG and hindsight.

    python -m scripts.train_hand runs/hand-ddpg --preset laptop --seeds 0 1
    python -m scripts.train_hand runs/hand-reengage --preset laptop --seeds 0 1 --goal-gradient-coef 6.7e-6
    python -m scripts.evaluate runs/hand-ddpg runs/hand-reengage --baseline runs/hand-ddpg
    python -m scripts.train_hand runs/hand-ddpg-published --seeds 0 --workers 16 --device cuda --cuda-graphs
    MUJOCO_GL=egl python -m scripts.rollout runs/hand-reengage/seed-0 --fps 25

The preset ``published`` is OpenAI's recipe (Plappert et al., "Multi-Goal Reinforcement Learning", 2018), which Section
8.4 adopts unchanged: a cycle is two episodes on each of 19 workers, followed by 40 updates on batches of 19 times 256;
an epoch is 50 cycles. ``laptop`` is the same with two episodes on 8 workers, batches of 1,024 and, since these are
noisier, half the learning rate. Line by line:

    recipe                                      here
    3 hidden layers of 256, both networks       net_arch
    Adam 0.001, both networks                   learning_rate; 0.0005 for laptop
    discount 1 - 1 / T                          gamma, T the time limit
    targets clipped to [-1 / (1 - gamma), 0]    target_range
    target networks keep 0.95 once per cycle    tau 0.05, target_update_interval 40
    inputs normalized, clipped at 5 (raw: 200)  NormalizedExtractor: observation and desired goal
    statistics from new episodes, relabelled    GoalConditioned.update_statistics
    squared actions in the actor's loss, 1.0    action_l2
    noise 0.2, random actions 0.3               noise, random_action
    hindsight, 4 future goals                   HerReplayBuffer
    a million transitions for each worker       buffer_size, all of a published run; a million in all for laptop
    success in the last step                    is_success of the environment, at the end of an episode
    190 test episodes per epoch                 eval_episodes, without noise

There, 19 learners average their gradients, each with its own buffer and with statistics of its own episodes before
these are averaged; here, one learner sees the 19-fold batch. Weights are initialized as in PyTorch, not by Glorot's
method. Goal gradients are with respect to the raw goal, through the normalization: goals are in metres, so the
coefficient has to be small, unless ``--normalize`` is given, too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import gymnasium
import numpy as np

from scripts.parts import cli, goal_training

CYCLES, UPDATES = 50, 40  # per epoch, per cycle
ROBOTICS = "gymnasium_robotics:"  # the module of ids without one
SHARE = 2 / 3  # share of the free memory that replay buffers may take


@dataclass(frozen=True)
class Preset:
    """Episodes in a cycle (which run in parallel), how to learn from them, and how long to train and evaluate."""

    num_envs: int
    batch_size: int
    epochs: int
    eval_episodes: int
    lr: float = 0.001
    buffer_size: int = 1_000_000
    checkpoint_epochs: int = 1


# with the published buffer, a checkpoint takes several gigabytes
PRESETS = {
    "published": Preset(38, 19 * 256, 50, 190, buffer_size=19_000_000, checkpoint_epochs=5),
    "laptop": Preset(16, 1_024, 20, 96, lr=0.0005),
}


@dataclass
class Args(goal_training.RunArgs):
    """Train a robot hand: one run per seed in OUT/seed-K."""

    env: str = cli.arg("id in gymnasium-robotics, or module:id", "HandReach-v3")
    preset: Literal["published", "laptop"] = cli.arg("size of cycles, batches, buffer and run", "published")
    epochs: int | None = cli.arg("epochs of 50 cycles each; by default the preset's", None)
    workers: int = cli.arg("simulation processes", os.cpu_count() or 1)
    num_envs: int | None = cli.arg("episodes in a cycle, which run in parallel; by default the preset's", None)
    steps: int | None = cli.arg("environment steps of each run, instead of --epochs", None)
    batch_size: int | None = cli.arg("transitions per update; by default the preset's", None)
    lr: float | None = cli.arg("learning rate; by default the preset's", None)
    eval_every: int | None = cli.arg("steps between evaluations; by default one epoch", None)
    eval_episodes: int | None = cli.arg("episodes per evaluation; by default the preset's", None)
    checkpoint_every: int | None = cli.arg("steps between checkpoints; by default the preset's", None)
    buffer_size: int | None = cli.arg("capacity of the replay buffer, in transitions; by default the preset's", None)
    device: str = cli.arg("cpu, cuda, ..., or auto (cuda if available)", "auto")
    normalize: bool = cli.arg("weight goal gradients by the variance of the goals (Appendix G.4)", False)


@lru_cache(maxsize=8)
def check_goals(env: str) -> None:
    """Raise ``ValueError`` unless an environment has goals."""
    made = gymnasium.make(env)
    space = made.observation_space
    made.close()
    if not isinstance(space, gymnasium.spaces.Dict) or not {"achieved_goal", "desired_goal"} <= set(space.keys()):
        raise ValueError(
            f"env: got {env!r}, which has no goals, expected observations with achieved_goal and desired_goal"
        )


def episode_length(env: str) -> int:
    """Steps of an episode; raises ``ValueError`` unless it is fixed and the environment has goals."""
    try:
        limit = goal_training.time_limit(env)
    except ValueError as error:
        if not env.startswith(ROBOTICS):
            raise
        raise ValueError(
            f"{error}; an id without a module refers to gymnasium_robotics, write others as module:id"
        ) from error
    if limit is None:
        raise ValueError(f"env: got {env!r}, which has no time limit, expected episodes of a fixed length")
    check_goals(env)
    return limit


def check_arguments(args: Args) -> None:
    """Raise ``ValueError`` for numbers out of range, and for options that exclude each other."""
    counts = ("workers", "num_envs", "epochs", "steps", "batch_size", "eval_every", "eval_episodes", "checkpoint_every")
    for name in (*counts, "buffer_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{name.replace('_', '-')}: got {value}, expected at least 1")
    if args.normalize and args.goal_gradient_coef == 0:
        raise ValueError("normalize: has no effect with --goal-gradient-coef 0; give both, or leave it out")
    if args.steps is not None and args.epochs is not None:
        raise ValueError(f"epochs: got {args.epochs} and {args.steps} steps, expected one or the other")


def configuration(args: Args) -> goal_training.Run:
    """The run that the arguments describe; raises ``ValueError`` if it is impossible here."""
    env = args.env if ":" in args.env else ROBOTICS + args.env
    limit = episode_length(env)
    check_arguments(args)
    preset = PRESETS[args.preset]
    gamma = 1 - 1 / limit
    num_envs = args.num_envs or preset.num_envs
    cycle = num_envs * limit
    epoch = CYCLES * cycle
    steps = args.steps or epoch * (args.epochs or preset.epochs)
    size = args.buffer_size or preset.buffer_size
    arguments = {
        "learning_rate": preset.lr if args.lr is None else args.lr,
        "batch_size": args.batch_size or preset.batch_size,
        "buffer_size": -(-size // cycle) * cycle,  # whole episodes, so that none is truncated when it is full
        "learning_starts": 0,
        "gamma": gamma,
        "tau": 0.05,
        "target_update_interval": UPDATES,
        "target_range": [-1 / (1 - gamma), 0.0],
        "train_freq": limit,  # in steps of all environments: rollouts are cycles
        "gradient_steps": UPDATES,
        "action_l2": 1.0,
        "random_action": 0.3,
        "policy_kwargs": {"net_arch": [256, 256, 256], "features_extractor_class": "NormalizedExtractor"},
        "goal_gradient_coef": args.goal_gradient_coef,
    }
    plan = {
        "steps": steps,
        "eval_every": args.eval_every or epoch,
        "eval_episodes": args.eval_episodes or preset.eval_episodes,
        "checkpoint_every": args.checkpoint_every or epoch * preset.checkpoint_epochs,
    }
    return goal_training.Run(
        env=env,
        env_arguments={},
        num_envs=num_envs,
        algorithm="ddpg",
        arguments=arguments,
        plan=plan,
        noise=0.2,
        goal_gradient={"normalize": True} if args.normalize else {},
    )


def check_memory(run: goal_training.Run, jobs: int) -> None:
    """Raise, before hours of training, if the replay buffers of ``jobs`` runs do not fit into memory."""
    env = run.make_env(1)
    numbers = 2 * sum(int(np.prod(space.shape)) for space in env.observation_space.values())  # type: ignore[attr-defined]
    numbers += int(np.prod(env.action_space.shape or (1,))) + 3
    env.close()
    transitions = min(run.arguments["buffer_size"], run.plan["steps"])  # memory is allocated as the buffer fills
    needed = 4 * numbers * transitions * jobs
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > SHARE * free:
        raise ValueError(
            f"buffer-size: got {transitions} transitions for each run, {jobs} at a time, which take "
            f"{needed / 2**30:.1f} GiB of {free / 2**30:.1f} GiB of free memory; choose a smaller one or fewer --jobs"
        )


def main(args: Args) -> None:
    run = configuration(args)
    check_memory(run, min(args.jobs, len(args.seeds)))
    goal_training.train_all(run, args, "scripts.train_hand", workers=args.workers)


if __name__ == "__main__":
    cli.run(main, Args, "scripts.train_hand")
