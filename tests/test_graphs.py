"""Recorded updates, on a CPU: a stand-in for CUDA graphs shows that what is repeated is what would have been done.

As a CUDA graph, it repeats operations on the memory where they were recorded, runs nothing of Python's in between, and
refuses what would have to wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rl
from rl.goals import GoalGradient
from rl.graphs import WARM_UP, Recorder, Results
from rl.updates import make_faster
from tests.agents import ALGORITHMS, agent

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "is_nonzero", "equal")


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
        if name in WAITING:
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
    for i, optimizer in enumerate(model._optimizers()):
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
        make_faster(optimizer, exact=False)

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
        for optimizer in model._optimizers():
            optimizer.load_state_dict(optimizer.state_dict())
        more()

    assert_same(*both("DDPG", train, goal_gradient_coef=0.5))


def test_logs_are_those_of_each_update() -> None:
    options: dict[str, Any] = {"goal_gradient_coef": 0.5, "gradient_steps": 20, "train_freq": 20}
    models = both("DDPG", lambda model: model.learn(100), **options)
    names = ("critic_loss", "goal_gradient_loss", "actor_loss")
    ours, theirs = ([model.logger.name_to_value[f"train/{name}"] for name in names] for model in models)
    assert ours == theirs


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


def test_a_reward_that_waits_for_the_device() -> None:
    def reward(achieved: Tensor, goal: Tensor) -> Tensor:
        return (achieved - goal).abs().sum(1) * (2.0 if float(goal.detach().sum()) > 0 else 1.0)

    model = recorded(agent("DDPG", goal_gradient_coef=0.5, goal_gradient=GoalGradient(reward=reward)))
    with pytest.raises(RuntimeError, match=r"cuda_graphs: an update cannot be recorded.*reward function"):
        model.learn(80)


def test_no_graphs_without_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"cuda_graphs: got True on the device cpu; they are for GPUs"):
        agent("DDPG", cuda_graphs=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("DDPG", {"learning_rate": lambda progress: 0.001 * progress}, "schedule, expected a number"),
        ("SAC", {"use_sde": True}, "use_sde=True"),
    ],
)
def test_what_cannot_be_recorded(name: str, options: dict[str, Any], message: str) -> None:
    model: Any = agent(name, **options)
    model.device = torch.device("cuda")
    with pytest.raises(ValueError, match=f"cuda_graphs: got.*{message}"):
        model._check_cuda_graphs()


def test_fused_steps_count_on_the_device() -> None:
    """A state that was loaded, or made by other kernels, may have its number of steps elsewhere."""
    parameter = torch.nn.Parameter(torch.zeros(2, device="meta"))
    optimizer = torch.optim.Adam([parameter])
    optimizer.state[parameter] = {"step": torch.tensor(3.0)}
    optimizer.param_groups[0]["fused"] = True
    make_faster(optimizer, exact=False, recorded=True)
    assert optimizer.state[parameter]["step"].device.type == "meta"
    assert optimizer.param_groups[0]["capturable"]


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
