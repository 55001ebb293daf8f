"""Recorded updates, on a CPU: a stand-in for CUDA graphs shows that what is repeated is what would have been done.

As a CUDA graph, it repeats operations on the memory where they were recorded, runs nothing of Python's in between, and
refuses what would have to wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rl
from rl.goals import GoalGradient
from rl.graphs import WARM_UP, Recorder, Results
from rl.recording import check_recordable, surroundings
from rl.updates import make_faster
from tests.agents import ALGORITHMS, agent, seek, vector

# operations that tell Python something, have as many results as it happens, or copy numbers from Python
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "repeat_interleave"}
WAITING |= {"lift_fresh", "is_nonzero", "equal", "bincount"}


class Tape(TorchDispatchMode):
    """Operations on tensors, to be carried out again in the same memory."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.steps: list[tuple[Any, Any, Any, Any]] = []
        self.saved: dict[int, tuple[Tensor, Tensor]] = {}

    def record(self, work: Callable[[], Results]) -> Results:
        state = torch.get_rng_state()
        with self:
            results = work()
        for memory, value in self.saved.values():  # nothing has happened yet
            memory.copy_(value)
        torch.set_rng_state(state)
        return results

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, results in self.steps:
                again = func(*args, **kwargs)
                for old, new in zip(flat(results), flat(again), strict=True):
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        masks = [tensor.dtype for tensor in flat(args[1])] if name.startswith("index") and len(args) > 1 else []
        if name in WAITING or torch.bool in masks:
            raise RuntimeError(f"{name} would wait for the device")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in flat(value):
                    memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                    self.saved.setdefault(tensor.untyped_storage().data_ptr(), (memory, memory.clone()))
        results = func(*args, **kwargs)
        self.steps.append((func, args, kwargs, results))
        return results


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in flat(part)] if isinstance(value, list | tuple) else []


def recorded(model: Any) -> Any:
    """The model, as on a GPU with ``cuda_graphs=True``."""
    model._recorder = Recorder(Tape)
    return model


def both(name: str, train: Callable[[Any], Any], **options: Any) -> list[Any]:
    """Two agents after the same training, without and with recordings."""
    models = []
    for dress in (lambda model: model, recorded):
        own = {key: dict(value) if isinstance(value, dict) else value for key, value in options.items()}
        models.append(dress(agent(name, **own)))  # here, since it seeds the global generators
        train(models[-1])
    return models


def state(model: Any) -> dict[str, Tensor]:
    own = {f"policy.{name}": value for name, value in model.policy.state_dict().items()}
    for i, optimizer in enumerate(model.optimizers()):
        for j, moments in optimizer.state_dict()["state"].items():
            own |= {f"{i}.{j}.{key}": value for key, value in moments.items()}
    return own


def assert_same(first: Any, second: Any) -> None:
    ours, theirs = state(first), state(second)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name].to(value)), name


@pytest.fixture(autouse=True)
def _fused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without graphs, too, steps are fused: what is compared is what the recording adds."""

    def fused(optimizer: Any, *, exact: bool, recorded: bool = False) -> None:
        on_gpu = optimizer.param_groups[0]["params"][0].device.type == "cuda"
        make_faster(optimizer, exact=False, recorded=recorded and on_gpu)

    monkeypatch.setattr("rl.reengage.make_faster", fused)
    Tape.made = 0


@pytest.mark.parametrize("coef", [0.0, 0.5])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_recorded_updates_are_the_updates(name: str, coef: float) -> None:
    models = both(name, lambda model: model.learn(90), goal_gradient_coef=coef)
    assert models[0]._n_updates >= 30
    assert Tape.made >= 1 + (name == "TD3")
    assert_same(*models)


OPTIONS: dict[str, dict[str, Any]] = {
    "recipe": {
        "policy_kwargs": {"net_arch": [16, 16], "features_extractor_class": rl.NormalizedExtractor},
        "action_l2": 1.0,
        "random_action": 0.3,
        "target_update_interval": 4,
        "target_range": (-10.0, 0.0),
    },
    "normalized": {"goal_gradient": GoalGradient(normalize=True)},
    "dense": {"goal_gradient": GoalGradient(reward=lambda achieved, goal: -(achieved - goal).abs().sum(1))},
    "many updates": {"gradient_steps": 10, "train_freq": 10},
}


@pytest.mark.filterwarnings("ignore:goal_gradient.*differentiates another reward:UserWarning")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options: dict[str, Any]) -> None:
    models = both("DDPG", lambda model: model.learn(90), goal_gradient_coef=0.5, **options)
    assert 1 <= Tape.made <= 6
    assert_same(*models)
    assert torch.equal(models[0].goal_statistics.variance, models[1].goal_statistics.variance)


def test_what_python_reads_may_change() -> None:
    """Coefficients, learning rates and parameters are those of the moment, not those that were recorded."""

    def train(model: Any) -> None:
        def more() -> None:
            model.learn(30, reset_num_timesteps=False)

        model.learn(80)
        model.goal_gradient_coef = 0.1
        more()
        model.gamma = 0.5
        more()
        model.lr_schedule = lambda progress: 0.01
        more()
        for optimizer in model.optimizers():
            optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
        more()

    assert_same(*both("DDPG", train, goal_gradient_coef=0.5))


def test_logs_are_those_of_each_update() -> None:
    options: dict[str, Any] = {"goal_gradient_coef": 0.5, "gradient_steps": 20, "train_freq": 20}
    models = both("DDPG", lambda model: model.learn(100), **options)
    names = ("critic_loss", "goal_gradient_loss", "goal_gradient_share", "actor_loss")
    ours, theirs = (dict(model.logger.name_to_value) for model in models)
    assert all(ours[f"train/{name}"] == theirs[f"train/{name}"] != 0 for name in names)


CHANGES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "temperature of the entropy": ("SAC", lambda model: setattr(model, "ent_coef_tensor", torch.tensor(0.5))),
    "option of an optimizer": ("DDPG", lambda model: model.critic.optimizer.param_groups[0].update(betas=(0.5, 0.9))),
    "rule": ("DDPG", lambda model: setattr(model, "goal_gradient", GoalGradient(low_reward=0.0))),
    "range": ("DDPG", lambda model: setattr(model, "target_range", [-1.0, 0.0])),
    "number as an array": ("DDPG", lambda model: setattr(model, "gamma", np.array(0.5))),
    "tensors of statistics": ("DDPG", lambda model: model.goal_statistics.update(torch.ones(3, 3))),
    "parameters": ("DDPG", lambda model: setattr(model.actor.mu[0].weight, "data", torch.ones(16, 6))),
}


@pytest.mark.parametrize(("name", "change"), CHANGES.values(), ids=CHANGES)
def test_changes_are_seen(name: str, change: Callable[[Any], None]) -> None:
    model: Any = agent(name, goal_gradient_coef=0.5, **({"ent_coef": 0.1} if name == "SAC" else {})).learn(60)
    before = surroundings(model)
    model.learn(10, reset_num_timesteps=False)
    assert surroundings(model) == before
    change(model)
    assert surroundings(model) != before


def test_recordings_belong_to_one_model(tmp_path: Path) -> None:
    model = recorded(agent("DDPG", goal_gradient_coef=0.5).learn(60))
    model.learn(10, reset_num_timesteps=False)
    assert Tape.made == 1
    copied = deepcopy(model)
    assert not copied._recorder._recorded
    copied.replay_buffer.set_env(copied.env)
    copied.learn(10, reset_num_timesteps=False)
    assert Tape.made == 2
    model.cuda_graphs = True
    model.save(tmp_path / "model")  # on a GPU; it acts and learns without one, too
    assert rl.DDPG.load(tmp_path / "model", env=seek(), device="cpu")._recorder is None


def test_the_first_updates_of_a_kind_are_not_recorded() -> None:
    recorder, total = Recorder(Tape), torch.zeros(3)

    def work(batch: dict[str, Tensor]) -> Results:
        total.add_(batch["x"])
        return {"sum": total.sum()}

    for i in range(10):
        with recorder.session(None):
            batch = {"x": torch.full((3,), float(i))}
            assert recorder.run("kind", batch, work)["sum"] == 3 * sum(range(i + 1))
        assert Tape.made == (i >= WARM_UP)
    with recorder.session(None):
        recorder.run("other", {"x": torch.zeros(3)}, work)
        recorder.run("kind", {"x": torch.zeros(1)}, work)
    assert Tape.made == 1


def test_results_outlive_the_next_update() -> None:
    recorder = Recorder(Tape)
    with recorder.session(None):
        results = [recorder.run(None, (torch.tensor(float(i)), None), lambda own: {"x": own[0] * 2}) for i in range(8)]
    assert [float(own["x"]) for own in results] == [2.0 * i for i in range(8)]


@pytest.mark.filterwarnings("ignore:goal_gradient.*differentiates another reward:UserWarning")
def test_a_reward_that_waits_for_the_device() -> None:
    def reward(achieved: Tensor, goal: Tensor) -> Tensor:
        return (achieved - goal).abs().sum(1) * (2.0 if float(goal.detach().sum()) > 0 else 1.0)

    model = recorded(agent("DDPG", goal_gradient_coef=0.5, goal_gradient=GoalGradient(reward=reward)))
    with pytest.raises(RuntimeError, match=r"cuda_graphs: got an update that cannot be recorded.*reward function"):
        model.learn(80)


def test_no_graphs_without_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"cuda_graphs: got True on the device cpu, expected a GPU"):
        agent("DDPG", cuda_graphs=True)


def test_what_cannot_be_recorded() -> None:
    goal_sets = rl.DDPG("MultiGoalPolicy", vector("NoisySeek-v0", 1, max_goals=3), device="cpu")
    unfit: dict[str, Any] = {
        "schedule, expected a number": agent("DDPG", learning_rate=lambda progress: 0.001 * progress),
        "use_sde=True": agent("SAC", use_sde=True),
        "Adagrad, which counts": agent("DDPG", policy_kwargs={"optimizer_class": torch.optim.Adagrad}),
        "MultiGoalPolicy, whose updates": goal_sets,
    }
    for message, model in unfit.items():
        with pytest.raises(ValueError, match=f"cuda_graphs: got.*{message}"):
            check_recordable(model)
    plain: Any = agent("DQN", policy_kwargs={"optimizer_class": torch.optim.SGD})
    check_recordable(plain)


def test_steps_are_counted_where_they_are_read() -> None:
    """A state that was loaded, or made by other kernels, may have its number of steps elsewhere."""
    parameters = [torch.nn.Parameter(torch.zeros(2, device="meta")) for _ in range(2)]
    optimizer = torch.optim.Adam(parameters)
    optimizer.state[parameters[1]] = {"step": torch.tensor(3.0)}  # the other never had a gradient
    make_faster(optimizer, exact=False, recorded=True)
    assert optimizer.state[parameters[1]]["step"].device.type == "meta"
    assert optimizer.param_groups[0]["capturable"]
    optimizer.param_groups[0].update(fused=None, foreach=None)
    optimizer.state[parameters[1]] = {"step": torch.tensor(3.0)}
    make_faster(optimizer, exact=True)
    assert optimizer.state[parameters[1]]["step"].device.type == "cpu"
    assert not optimizer.param_groups[0]["capturable"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ALGORITHMS)
def test_on_a_gpu(name: str) -> None:
    def trained(**options: Any) -> Any:
        return agent(name, goal_gradient_coef=0.5, device="cuda", **options).learn(200)

    eager, graphs = trained(), trained(cuda_graphs=True)
    assert graphs._recorder._recorded
    ours, theirs = state(graphs), state(eager)
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-3, atol=1e-4)
    for key, value in eager.logger.name_to_value.items():
        if key.startswith("train/"):
            assert graphs.logger.name_to_value[key] == pytest.approx(value, rel=1e-2, abs=1e-3), key


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("name", ALGORITHMS)
def test_updates_do_not_wait_for_a_gpu(name: str) -> None:
    rule = GoalGradient(normalize=True)
    model: Any = agent(name, goal_gradient_coef=0.5, goal_gradient=rule, device="cuda").learn(100)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(4):
            model._update(model.replay_buffer.sample(32), step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
