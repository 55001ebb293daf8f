"""Train DQN on BitFlipping with hindsight, with or without ReenGAGE's term for discrete actions (Appendix G.2).

    python -m scripts.train_bit_flipping runs/bits40-dqn --seeds 0 1 2 3 --jobs 2
    python -m scripts.train_bit_flipping runs/bits40-reengage --seeds 0 1 2 3 --jobs 2 \\
        --goal-gradient-coef 0.5 --temperature 0.5
    python -m scripts.evaluate runs/bits40-dqn runs/bits40-reengage --baseline runs/bits40-dqn

Appendix G.2 uses the hyperparameters of Hindsight Experience Replay (Andrychowicz et al., NeurIPS 2017, Appendix A):
one hidden layer of 256 units; Adam with learning rate 0.001; batches of 128 from a replay buffer of a million
transitions; discount 0.98; a fifth of the actions random; 4 relabelled goals per real one, from the future of the
episode; cycles of 16 episodes and then 40 updates, after which the target network keeps 0.95 of itself. As in Appendix
G.2, targets are not clipped, nothing is normalized, and there is one process. An epoch of that paper is 50 cycles, so
with 40 bits each evaluation follows an epoch; the number of epochs is a choice made here.

Unlike there, the 16 episodes of a cycle run in parallel, and whether to act randomly is drawn once for all 16, as in
Stable-Baselines3. Everything not listed is at the default of Stable-Baselines3: gradients are clipped at norm 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scripts.parts import cli, goal_training

EPISODES, UPDATES = 16, 40  # per cycle


@dataclass
class Args(goal_training.Args):
    """Train on BitFlipping: one run per seed in OUT/seed-K."""

    d: int = cli.arg("number of bits, and of steps in an episode", 40)
    steps: int = cli.arg("environment steps of each run, rounded up to whole cycles of 16 episodes", 3_200_000)
    batch_size: int | None = cli.arg("transitions per update", 128)
    lr: float | None = cli.arg("learning rate", 0.001)
    eval_every: int = cli.arg("steps between evaluations, each at the end of a cycle", 32_000)
    checkpoint_every: int = cli.arg("steps between checkpoints; part of the run's configuration", 320_000)
    temperature: float = cli.arg("temperature tau of the soft target; 0 is the maximum", 0.5)
    soft_target: Literal["gradient", "both", "behaviour"] = cli.arg(
        "where to use the soft target: in the gradient term, in both terms, or also to choose actions", "gradient"
    )


def configuration(args: Args) -> goal_training.Run:
    for name, default in (("soft_target", Args.soft_target), ("temperature", Args.temperature)):
        if args.goal_gradient_coef == 0 and getattr(args, name) != default:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag}: has no effect with --goal-gradient-coef 0; give both, or leave it out")
    cycle = EPISODES * args.d
    arguments = {
        "learning_rate": args.lr,
        "batch_size": args.batch_size,
        "buffer_size": 1_000_000,
        "learning_starts": 0,
        "gamma": 0.98,
        "tau": 0.05,
        "train_freq": args.d,  # in steps of all environments: rollouts are cycles
        "gradient_steps": UPDATES,
        "target_update_interval": cycle,  # in steps of one environment: at the end of a rollout, before its updates
        "exploration_initial_eps": 0.2,
        "exploration_final_eps": 0.2,
        "policy_kwargs": {"net_arch": [256]},
        "goal_gradient_coef": args.goal_gradient_coef,
        "temperature": args.temperature,
        "soft_target": args.soft_target,
    }
    return goal_training.Run(
        env="BitFlipping-v0",
        env_arguments={"d": args.d},
        num_envs=EPISODES,
        algorithm="dqn",
        arguments=arguments,
        plan=goal_training.plan_of(args),
    )


def main(args: Args) -> None:
    goal_training.train_all(configuration(args), args, "scripts.train_bit_flipping")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.train_bit_flipping")
