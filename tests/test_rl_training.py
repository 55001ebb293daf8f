"""Runs of agents: evaluations, checkpoints, and resuming to the identical result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import gymnasium
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import rl
from envs.continuous_seek import ContinuousSeek
from rl.checkpoint import check_settings, start_afresh
from rl.goals import GoalGradient
from rl.training import LOG, STATE, EvaluationLog
from tests.agents import ALGORITHMS, agent, bits, seek
from tests.test_reengage import Learned

PLAN = rl.Plan(steps=200, eval_every=50, eval_episodes=7, checkpoint_every=75)


class Killed(Exception):
    pass


class KillAt(BaseCallback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.step:
            raise Killed
        return True


def environment(name: str, num_envs: int) -> Any:
    return bits(num_envs) if name == "DQN" else seek(num_envs)


def trained(name: str, folder: Path, *, num_envs: int = 1, kill: int | None = None, **options: Any) -> EvaluationLog:
    options = {"goal_gradient_coef": 0.3, "gradient_steps": num_envs, **options}
    model = agent(name, env=environment(name, num_envs), **options)
    callback = None if kill is None else KillAt(kill)
    return rl.run(model, environment(name, 3), PLAN, folder, resume=(folder / STATE).exists(), callback=callback)


def same_files(first: Path, second: Path) -> bool:
    one, other = load_file(first / STATE), load_file(second / STATE)
    assert set(one) == set(other)
    with np.load(first / LOG) as a, np.load(second / LOG) as b:
        logs = all(np.array_equal(a[name], b[name]) for name in a.files)
    return logs and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_killed_run_resumes_to_the_identical_result(name: str, num_envs: int, tmp_path: Path) -> None:
    whole = trained(name, tmp_path / "whole", num_envs=num_envs)
    assert whole.timesteps == [50, 100, 150, 200]
    assert all(len(results) == 7 for results in whole.results)
    for kill in (90, 190):
        with pytest.raises(Killed):
            trained(name, tmp_path / "killed", num_envs=num_envs, kill=kill)
    trained(name, tmp_path / "killed", num_envs=num_envs)
    assert same_files(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_killed_run_on_a_gpu_resumes_to_the_identical_result(name: str, cuda_graphs: bool, tmp_path: Path) -> None:
    options = {"device": "cuda", "cuda_graphs": cuda_graphs}
    trained(name, tmp_path / "whole", **options)
    for kill in (90, 190):
        with pytest.raises(Killed):
            trained(name, tmp_path / "killed", kill=kill, **options)
    trained(name, tmp_path / "killed", **options)
    assert same_files(tmp_path / "whole", tmp_path / "killed")


def test_resuming_with_normalized_gradients(tmp_path: Path) -> None:
    rule = GoalGradient(normalize=True)
    trained("DDPG", tmp_path / "whole", goal_gradient=rule)
    with pytest.raises(Killed):
        trained("DDPG", tmp_path / "killed", kill=120, goal_gradient=rule)
    trained("DDPG", tmp_path / "killed", goal_gradient=rule)
    assert same_files(tmp_path / "whole", tmp_path / "killed")


def test_resuming_with_state_dependent_exploration(tmp_path: Path) -> None:
    trained("SAC", tmp_path / "whole", use_sde=True)
    with pytest.raises(Killed):
        trained("SAC", tmp_path / "killed", kill=120, use_sde=True)
    trained("SAC", tmp_path / "killed", use_sde=True)
    assert same_files(tmp_path / "whole", tmp_path / "killed")


def test_n_step_returns_end_where_a_run_starts_afresh() -> None:
    model = rl.DDPG("MlpPolicy", "Pendulum-v1", n_steps=3, gamma=0.9, seed=0, buffer_size=100, device="cpu").learn(20)
    start_afresh(model)
    model.learn(10, reset_num_timesteps=False)
    assert isinstance(model.replay_buffer, NStepReplayBuffer)
    discounts = model.replay_buffer._get_samples(np.array([16, 17, 18, 19, 20])).discounts
    assert discounts is not None
    assert discounts.flatten().tolist() == pytest.approx([0.9**n for n in (3, 3, 2, 1, 3)])


def test_checkpoints_of_shared_networks(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "policy_kwargs": {"net_arch": [8], "share_features_extractor": True, "features_extractor_class": Learned}
    }
    model = agent("SAC", **options).learn(60)
    rl.save_checkpoint(model, tmp_path / STATE)
    loaded = agent("SAC", **options | {"seed": 1})
    rl.load_checkpoint(loaded, tmp_path / STATE)
    assert all(
        torch.equal(value, model.policy.state_dict()[name]) for name, value in loaded.policy.state_dict().items()
    )


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    first = trained("DDPG", tmp_path)
    before = (tmp_path / STATE).read_bytes()
    assert trained("DDPG", tmp_path) == first
    assert (tmp_path / STATE).read_bytes() == before


def test_a_run_that_is_made_longer_equals_a_long_one(tmp_path: Path) -> None:
    for folder, lengths in (("whole", [300]), ("longer", [150, 300])):
        for steps in lengths:
            model, plan = agent("DDPG", goal_gradient_coef=0.3), rl.Plan(steps, 50, 7, 75)
            rl.run(model, seek(3), plan, tmp_path / folder, resume=True)
    assert same_files(tmp_path / "whole", tmp_path / "longer")


def test_the_trained_agent_is_evaluated(tmp_path: Path) -> None:
    log = rl.run(agent("DDPG"), seek(3), rl.Plan(130, 50, 3, 100), tmp_path)
    assert log.timesteps == [50, 100, 130]


class SometimesSuccessful(gymnasium.Wrapper):
    """Reports success in some of its episodes only: in those whose number is in ``reported``."""

    def __init__(self, env: gymnasium.Env, reported: range) -> None:
        super().__init__(env)
        self.reported, self.episode = reported, -1

    def reset(self, **options: Any) -> Any:
        self.episode += 1
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        *outcome, _ = self.env.step(action)
        return *outcome, {"is_success": True} if self.episode in self.reported else {}


@pytest.mark.parametrize(
    ("reported", "message"),
    [
        (range(1, 2), "got it in the infos of 1 of 3 episodes at their end"),
        (
            range(3, 100),
            "infos of all of the episodes that were evaluated at step 100, and in none before",
        ),
    ],
)
def test_success_is_reported_always_or_never(reported: range, message: str, tmp_path: Path) -> None:
    evaluated = DummyVecEnv([lambda: SometimesSuccessful(gymnasium.make("ContinuousSeek-v0", d=3, steps=5), reported)])
    with pytest.raises(ValueError, match=message):
        rl.run(agent("DDPG"), evaluated, rl.Plan(130, 50, 3, 100), tmp_path)


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    trained("DDPG", tmp_path)
    model = agent("DDPG", buffer_size=100, goal_gradient_coef=0.3)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match="replay buffer"):
        rl.load_checkpoint(model, tmp_path / STATE)
    assert all(torch.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert model.num_timesteps == 0


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    trained("DDPG", tmp_path)
    with pytest.raises(ValueError, match="holds a training run; give resume=True"):
        rl.run(agent("DDPG"), seek(2), PLAN, tmp_path)
    (tmp_path / LOG).unlink()  # there are checkpoints before the first evaluation
    with pytest.raises(ValueError, match="holds a training run; give resume=True"):
        rl.run(agent("DDPG"), seek(2), PLAN, tmp_path)


def test_the_log_is_that_of_an_eval_callback(tmp_path: Path) -> None:
    trained("DDPG", tmp_path)
    with np.load(tmp_path / LOG, allow_pickle=False) as log:
        assert set(log.files) == {"timesteps", "results", "ep_lengths", "successes"}
        assert log["results"].shape == log["ep_lengths"].shape == log["successes"].shape == (4, 7)
        assert log["successes"].dtype == bool


def test_evaluations_are_in_the_logs_of_stable_baselines3(tmp_path: Path) -> None:
    model = agent("DDPG", goal_gradient_coef=0.3)
    model.set_logger(configure(str(tmp_path / "logs"), ["json"]))
    done = rl.run(model, seek(3), PLAN, tmp_path / "run")
    model.logger.close()
    lines = [json.loads(line) for line in (tmp_path / "logs" / "progress.json").read_text().splitlines()]
    rates = [line["eval/success_rate"] for line in lines if "eval/success_rate" in line]
    assert rates == pytest.approx([np.mean(successes) for successes in done.successes])
    assert sum("eval/mean_reward" in line and "eval/mean_ep_length" in line for line in lines) == len(rates) == 4


def test_a_trained_agent_acts_without_its_buffer(tmp_path: Path) -> None:
    trained("DDPG", tmp_path)
    model = agent("DDPG", goal_gradient_coef=0.3)
    rl.load_checkpoint(model, tmp_path / STATE, buffer=False)
    assert model.num_timesteps == 200
    assert model.replay_buffer is not None
    assert model.replay_buffer.pos == 0
    done = rl.run_episodes(model, seek(2), 5, seed=3)
    assert len(done.returns) == len(done.lengths) == len(done.successes) == 5
    assert done == rl.run_episodes(model, seek(2), 5, seed=3)


def test_damaged_and_foreign_checkpoints(tmp_path: Path) -> None:
    trained("DDPG", tmp_path)
    path = tmp_path / STATE
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        rl.load_checkpoint(agent("DDPG"), tmp_path / "nothing")
    with pytest.raises(ValueError, match="got a checkpoint of DDPG"):
        rl.load_checkpoint(agent("TD3"), path)
    with pytest.raises(ValueError, match="networks do not fit"):
        rl.load_checkpoint(agent("DDPG", policy_kwargs={"net_arch": [8]}), path)
    with pytest.raises(ValueError, match="replay buffer do not fit"):
        rl.load_checkpoint(agent("DDPG", buffer_size=100), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or not a checkpoint"):
        rl.load_checkpoint(agent("DDPG"), path)


def test_normalizing_environments_are_refused(tmp_path: Path) -> None:
    model = agent("DDPG", env=VecNormalize(seek()))
    with pytest.raises(ValueError, match="VecNormalize"):
        rl.run(model, seek(2), PLAN, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"env": gymnasium.make("ContinuousSeek-v0", d=3), "replay_buffer_kwargs": {"copy_info_dict": True}},
            "copy_info_dict: got True, but infos are not part of a checkpoint",
        ),
        ({"seed": None}, "seed: got None"),
    ],
)
def test_what_a_checkpoint_does_not_hold_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        rl.run(agent("DDPG", **options), seek(2), PLAN, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_entropy_coefficients_that_do_not_fit(tmp_path: Path) -> None:
    rl.save_checkpoint(agent("SAC", ent_coef=0.1), tmp_path / STATE)
    with pytest.raises(ValueError, match="variables do not fit the model"):
        rl.load_checkpoint(agent("SAC"), tmp_path / STATE)


def test_environments_and_plans_of_another_type(tmp_path: Path) -> None:
    model, single = agent("DDPG"), gymnasium.make("ContinuousSeek-v0")
    with pytest.raises(ValueError, match=r"eval_env: got OrderEnforcing, expected a VecEnv.*DummyVecEnv"):
        rl.run(model, single, PLAN, tmp_path / "run")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="env: got OrderEnforcing, expected a VecEnv"):
        rl.run_episodes(model, single, 2, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"plan: got 60, expected an rl\.Plan"):
        rl.run(model, seek(2), 60, tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_models_that_stable_baselines3_has_saved(tmp_path: Path) -> None:
    model = agent("DDPG")
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"load it with DDPG.load\("):
        rl.load_checkpoint(model, tmp_path / "model.zip")


def test_plans_are_checked() -> None:
    with pytest.raises(ValueError, match="eval_every: got 0"):
        rl.Plan(steps=10, eval_every=0)


def test_a_failing_write_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent("DDPG").learn(60)
    path = tmp_path / STATE
    rl.save_checkpoint(model, path)
    before = path.read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rl.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space"):
        rl.save_checkpoint(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_diverged_agent_replaces_no_checkpoint(tmp_path: Path) -> None:
    model: Any = agent("DDPG").learn(60)
    rl.save_checkpoint(model, tmp_path / STATE)
    before = (tmp_path / STATE).read_bytes()
    with torch.no_grad():
        model.actor.mu[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"not written, since actor.mu.0.weight is no longer finite after 60 steps"):
        rl.save_checkpoint(model, tmp_path / STATE)
    assert (tmp_path / STATE).read_bytes() == before


def test_the_environment_of_training_is_not_evaluated_in(tmp_path: Path) -> None:
    """An evaluation would break off its episodes, and the replay buffer would hold steps that never happened."""
    env = gymnasium.make("ContinuousSeek-v0", d=3)
    model: Any = agent("DDPG", env=env)
    for same in (model.env, DummyVecEnv([lambda: env])):
        with pytest.raises(ValueError, match="eval_env: got the training environment"):
            rl.run(model, same, PLAN, tmp_path)
    adapted = seek()
    with pytest.raises(ValueError, match="eval_env: got the training environment"):
        rl.run(agent("DDPG", env=adapted), rl.VectorEnvAdapter(adapted.env), PLAN, tmp_path)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("options", "plan", "what"),
    [
        ({"batch_size": 8}, {}, "batch_size = .*, not 8"),
        ({"learning_rate": 0.02}, {}, "learning_rate = .*, not 0.02"),
        ({"seed": 9}, {}, "seed = .*, not 9"),
        ({"target_range": (-9.0, 0.0)}, {}, r"target_range = None, not \[-9.0, 0.0\]"),
        ({"goal_gradient": GoalGradient(normalize=True)}, {}, "goal_gradient = .*'normalize': True"),
        ({"gradient_steps": 2}, {}, "gradient_steps = 1, not 2"),
        ({"goal_gradient_coef": 0.4}, {}, "goal_gradient_coef = 0.3, not 0.4"),
        ({"replay_buffer_kwargs": {"n_sampled_goal": 2}}, {}, "replay_buffer.n_sampled_goal = 4, not 2"),
        ({}, {"eval_episodes": 6}, "plan.eval_episodes = 7, not 6"),
        ({}, {"checkpoint_every": 50}, "plan.checkpoint_every = 75, not 50"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_another_experiment_is_not_gone_on_with(
    options: dict[str, Any], plan: dict[str, Any], what: str, tmp_path: Path
) -> None:
    trained("DDPG", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    arguments: dict[str, Any] = {"goal_gradient_coef": 0.3, "gradient_steps": 1, **options}
    model = agent("DDPG", **arguments)
    with pytest.raises(ValueError, match=f"was trained with {what}"):
        rl.run(model, seek(3), replace(PLAN, **({"steps": 300} | plan)), tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("trained_with", "given", "same"),
    [
        ({"goal_gradient_coef": 1}, {"goal_gradient_coef": 1.0}, True),
        ({"goal_gradient": GoalGradient(low_reward=-1)}, {"goal_gradient": GoalGradient(low_reward=-1.0)}, True),
        ({"target_range": (-9, 0)}, {"target_range": (-9.0, 0.0)}, True),
        ({"goal_gradient": GoalGradient(normalize=True)}, {"goal_gradient": GoalGradient(normalize=1)}, False),  # type: ignore[arg-type]
        ({"target_range": (-9, 0)}, {"target_range": (-9, 1)}, False),
    ],
)
def test_equal_numbers_are_no_other_setting(
    trained_with: dict[str, Any], given: dict[str, Any], same: bool, tmp_path: Path
) -> None:
    rl.save_checkpoint(agent("DDPG", **trained_with), tmp_path / STATE)
    if same:
        check_settings(agent("DDPG", **given), tmp_path / STATE)
    else:
        with pytest.raises(ValueError, match=f"was trained with {next(iter(given))} = "):
            check_settings(agent("DDPG", **given), tmp_path / STATE)


class Counting(BaseCallback):
    steps = 0

    def _on_step(self) -> bool:
        self.steps += 1
        return True


def test_callbacks_are_those_of_learn(tmp_path: Path) -> None:
    first, second, plan, seen = Counting(), Counting(), replace(PLAN, steps=60), []
    rl.run(agent("DDPG"), seek(3), plan, tmp_path / "list", callback=[first, second])
    assert first.steps == second.steps == 60
    rl.run(agent("DDPG"), seek(3), plan, tmp_path / "none", callback=[])
    rl.run(agent("DDPG"), seek(3), plan, tmp_path / "function", callback=lambda *_: seen.append(1) is None)
    assert len(seen) == 60
    assert same_files(tmp_path / "list", tmp_path / "none")


def test_a_folder_is_for_one_process_at_a_time(tmp_path: Path) -> None:
    class Second(BaseCallback):
        def _on_step(self) -> bool:
            with pytest.raises(ValueError, match="another process trains here"):
                rl.run(agent("DDPG"), seek(3), PLAN, tmp_path)
            return False

    rl.run(agent("DDPG"), seek(3), PLAN, tmp_path, callback=Second())


def test_what_a_killed_process_has_half_written_is_removed(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    (tmp_path / f".{STATE}.{uuid4().hex}.tmp").write_bytes(b"half a checkpoint")
    (tmp_path / f".{LOG}.{uuid4().hex}.tmp.npz").touch()
    (tmp_path / ".tmpNmvMEY").write_bytes(b"as safetensors names it")
    (tmp_path / ".mine.tmp").touch()
    rl.run(agent("DDPG"), seek(3), replace(PLAN, steps=60), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {STATE, LOG, ".mine.tmp"}


def test_a_log_that_is_lost_is_missed(tmp_path: Path) -> None:
    trained("DDPG", tmp_path)
    log = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).unlink()
    model = agent("DDPG", goal_gradient_coef=0.3)
    with pytest.raises(
        ValueError, match=r"evaluations\.npz: is missing, so evaluations of a run of 200 steps are lost"
    ):
        rl.run(model, seek(), PLAN, tmp_path, resume=True)
    short = EvaluationLog.load(_written(tmp_path / LOG, log), until=100)
    short.save(tmp_path / LOG)
    with pytest.raises(ValueError, match=r"ends at step 100, so evaluations of a run of 200 steps are lost"):
        rl.run(model, seek(), PLAN, tmp_path, resume=True)
    (tmp_path / LOG).write_bytes(log[:-30])
    with pytest.raises(ValueError, match=r"evaluations\.npz: is cut off"):
        rl.run(model, seek(), PLAN, tmp_path, resume=True)


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    model = agent("DDPG")
    with monkeypatch.context() as full:
        full.setattr("rl.checkpoint.save_file", fails)
        with pytest.raises(OSError, match=r"could not be written \(.*No space left on device\)$"):
            rl.save_checkpoint(model, tmp_path / STATE)
    rl.save_checkpoint(model, tmp_path / STATE)
    before = (tmp_path / STATE).read_bytes()
    monkeypatch.setattr("rl.checkpoint.save_file", fails)
    with pytest.raises(OSError, match=r"could not be written \(.*No space left on device\), the checkpoint before it"):
        rl.save_checkpoint(model, tmp_path / STATE)
    assert [path.name for path in tmp_path.iterdir()] == [STATE]
    assert (tmp_path / STATE).read_bytes() == before


def test_checkpoints_have_the_permissions_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    rl.save_checkpoint(agent("DDPG"), tmp_path / STATE)
    assert (tmp_path / STATE).stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(("name", "value"), [("goal_gradient_coef", 0.3), ("gamma", 0.5), ("tau", 0.5)])
def test_going_on_with_other_settings_is_pointed_out(name: str, value: Any, tmp_path: Path) -> None:
    rl.save_checkpoint(agent("DDPG", **{name: value}), tmp_path / STATE)
    with pytest.warns(UserWarning, match=rf"was trained with {name} = {value}, not "):
        rl.load_checkpoint(agent("DDPG"), tmp_path / STATE)
    rl.load_checkpoint(agent("DDPG"), tmp_path / STATE, buffer=False)  # it only acts


def test_numbers_that_are_none_end_training(tmp_path: Path) -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.3).learn(80)
    with torch.no_grad():
        next(model.critic.parameters()).fill_(torch.nan)
    with pytest.raises(
        FloatingPointError, match=r"train/\w+: got nan after \d+ updates, from which training cannot recover"
    ):
        model.learn(10, reset_num_timesteps=False)


@pytest.mark.filterwarnings("error:replay buffer")  # steps and compute_reward agree: both have none
def test_rewards_that_are_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = agent("DDPG", goal_gradient_coef=0.3)
    monkeypatch.setattr(ContinuousSeek, "reward", lambda self, achieved, desired: 0 * achieved[..., 0] + np.nan)
    with pytest.raises(
        FloatingPointError, match="buffer has a reward of nan, expected finite rewards; check step and compute_reward"
    ):
        model.learn(80)


@pytest.mark.filterwarnings("ignore:replay buffer")  # steps and compute_reward disagree
def test_rewards_that_are_none_after_relabelling_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """These are in no buffer, only in minibatches."""
    model: Any = agent("DDPG", goal_gradient_coef=0.3).learn(60)
    monkeypatch.setattr(model.replay_buffer, "_rewards", lambda achieved, *_: np.full(len(achieved), np.inf, "f"))
    with pytest.raises(FloatingPointError, match="buffer has a reward of inf, expected finite rewards"):
        model.learn(60, reset_num_timesteps=False)


def test_a_checkpoint_replaces_what_a_full_buffer_held(tmp_path: Path) -> None:
    """Also beyond what the checkpoint fills: an episode there, from before, would be drawn in part."""
    model: Any = agent("DDPG", buffer_size=50, goal_gradient_coef=0).learn(30)
    rl.save_checkpoint(model, tmp_path / STATE)
    model.learn(300, reset_num_timesteps=False)
    rl.load_checkpoint(model, tmp_path / STATE)
    buffer = model.replay_buffer
    assert not buffer.ep_length[buffer.pos :].any()
    model.learn(120, reset_num_timesteps=False)
