"""Speed of HandReach relative to plain baselines: simulation in worker processes, and updates of the learner.

    python -m benchmarks.hand [--quick] [--device cuda] [--batch-size 4864]

Simulation: steps per second of 16 environments in one process per core (at most 16), relative to those of one bare
environment times the number of processes. Learning: updates per second with the recipe of ``scripts.train_hand`` (three
hidden layers of 256, normalization inside the policy, batches of 256), relative to Stable-Baselines3's DDPG with its
hindsight buffer and the same layers on the same device; on a GPU, also with updates recorded as CUDA graphs.
Measurements alternate, and the median of the pairwise ratios is reported.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.logger import configure

from benchmarks.measure import arguments, median_ratio, seconds_in_turn
from envs.parallel import ParallelVectorEnv
from rl.graphs import WARM_UP
from scripts.parts import cli
from scripts.train_hand import Args, configuration

HAND = "gymnasium_robotics:HandReach-v3"
ENVS = 16


def simulation(seconds: float, rounds: int) -> None:
    workers = min(os.cpu_count() or 1, ENVS)
    single, many = gymnasium.make(HAND), ParallelVectorEnv(HAND, ENVS, workers)
    rng = np.random.default_rng(0)
    single.reset(seed=0)
    many.reset(seed=0)
    size = single.action_space.shape or (1,)

    def bare() -> int:
        _, _, terminated, truncated, _ = single.step(rng.uniform(-1, 1, size))
        if terminated or truncated:
            single.reset()
        return 1

    def parallel() -> int:
        many.step(rng.uniform(-1, 1, (ENVS, *size)))
        return ENVS

    pairs = [(rate(parallel, seconds), rate(bare, seconds)) for _ in range(rounds)]
    many.close()
    ratio = median_ratio(*zip(*pairs, strict=True)) / workers
    print(
        f"simulation: {pairs[-1][0]:,.0f} steps/s with {workers} processes, {pairs[-1][1]:,.0f} bare; ratio {ratio:.3f}"
    )


def rate(work: Any, seconds: float) -> float:
    """Units of work done per second."""
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        done += work()
    return done / (time.perf_counter() - started)


def learning(updates: int, rounds: int, device: str, batch_size: int) -> None:
    run = configuration(Args(out=None, preset="laptop", buffer_size=40_000))  # type: ignore[arg-type]
    reengage = replace(run, arguments=run.arguments | {"goal_gradient_coef": 3e-5})
    agents: dict[str, Any] = {"ours": run.make_model(device, workers=min(os.cpu_count() or 1, ENVS))}
    env = agents["ours"].env
    agents["Stable-Baselines3"] = sb3.DDPG(
        "MultiInputPolicy",
        env,
        batch_size=batch_size,
        buffer_size=40_000,
        learning_starts=0,
        train_freq=50,
        policy_kwargs={"net_arch": [256] * 3},
        replay_buffer_class=sb3.HerReplayBuffer,
        seed=0,
        device=device,
    )
    agents["ours, ReenGAGE"] = reengage.make_model(device)
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        agents["ours, graphs"] = run.make_model(device, cuda_graphs=True)
        agents["ours, ReenGAGE, graphs"] = reengage.make_model(device, cuda_graphs=True)
    for model in agents.values():
        model.set_logger(configure(None, []))
        model.gradient_steps = 1
        model.learn(ENVS * 100)
        for _ in range(WARM_UP + 2):  # one in 40 updates is of another kind, which has to be recorded, too
            model.train(updates, batch_size)

    def train(model: Any) -> None:
        model.train(updates, batch_size)
        if on_gpu:
            torch.cuda.synchronize(device)

    times = seconds_in_turn({name: partial(train, model) for name, model in agents.items()}, rounds)
    for name, own in times.items():
        ratio = median_ratio(times["Stable-Baselines3"], own)
        print(f"updates: {name:22} {1000 / updates * statistics.median(own):6.2f} ms; ratio of updates/s {ratio:.3f}")
    for model in agents.values():
        model.env.close()


def main() -> None:
    args = arguments(
        "hand",
        __doc__,
        quick=(False, "fewer rounds"),
        device=("cpu", "where to learn: cpu, cuda, ..."),
        batch_size=(256, "batch size of an update"),
    )
    if args.batch_size < 1:
        raise SystemExit(f"batch-size: got {args.batch_size}, expected at least 1")
    rounds = 5 if args.quick else 15
    where = f"; {torch.cuda.get_device_name(args.device)}" if torch.device(args.device).type == "cuda" else ""
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads{where}; commit {cli.commit()}")
    simulation(1.0, rounds)
    learning(40, rounds, args.device, args.batch_size)


if __name__ == "__main__":
    main()
