"""ReenGAGE: the training loop of all algorithms, with a goal-gradient term in the critic loss.

There is one loop, :meth:`GoalConditioned.train`. The algorithms differ in small adapters (:mod:`rl.actor_critic`,
:mod:`rl.dqn`): how the next state is valued, which loss the critics have, and what happens before and after the
critic's step. With ``goal_gradient_coef=0`` and no other option of this package that changes losses or inputs, all
parameters equal those of Stable-Baselines3 bit for bit, after any number of updates.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, cast

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import unwrap_vec_normalize
from torch import Tensor, nn

from rl.checks import check_one_normalization, check_options, check_range, check_samples_apart
from rl.goals import GOAL, GoalGradient, GoalStatistics, GradientRule, Observation
from rl.graphs import Recorder, Results
from rl.her import HerReplayBuffer, end_open_episodes
from rl.losses import goal_gradient_loss, td_target, td_target_gradient
from rl.normalization import NormalizedExtractor, share_statistics
from rl.recording import check_recordable, surroundings
from rl.reward_watch import RewardWatch
from rl.slopes import PlainCritic, slope
from rl.transfer import to_device
from rl.updates import Follower, make_faster

Batch = DictReplayBufferSamples
Discount = Tensor | float
AlgorithmT = TypeVar("AlgorithmT", bound="GoalConditioned")
Networks = Literal["target", "critic", "actor"]


@dataclass(frozen=True)
class NextValue:
    """The value of the next states, ``[B, 1]`` each.

    Attributes:
        target: used in the TD target.
        smooth: its gradient with respect to the goal is the target for the critic's; often the same tensor.
    """

    target: Tensor
    smooth: Tensor


class Logs:
    """Values collected during one call of ``train`` and averaged once, at its end."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, value: Tensor) -> None:
        self.values[name].append(value.detach())

    def last(self) -> Results:
        return {name: values[-1] for name, values in self.values.items()}

    def means(self) -> dict[str, float]:
        if not self.values:
            return {}
        means = [torch.stack([value.reshape(()) for value in values]).mean() for values in self.values.values()]
        return dict(zip(self.values, torch.stack(means).tolist(), strict=True))  # one transfer from the device


class GoalConditioned(OffPolicyAlgorithm):
    """The training loop: a mixin that comes before an off-policy algorithm of Stable-Baselines3 among the bases.

    Args:
        goal_gradient_coef: the paper's alpha, which multiplies the squared error of the goal gradients *summed* over
            the goal's coordinates and averaged over the batch. 0 trains as Stable-Baselines3 does. It cannot follow a
            schedule, but may be assigned a new value between two calls of ``learn``.
        goal_gradient: what is differentiated and which transitions count; by default the policy's own rule if it has
            one, else ReenGAGE for sparse rewards with -1 for not reaching the goal (dissertation, Eq. 8.9).
        target_range: smallest and largest possible return (for SAC with its entropy); TD targets are clipped to it. The
            target of the goal gradient is not (in the code of the paper's authors it is, and then 0 there): where a
            value is clipped, its gradient still says where the goal lies.
        cuda_graphs: record updates on a GPU and replay them (:mod:`rl.graphs`), which pays off for small networks.
            Results differ in the last bits. Not for many goals at a time, whose number determines how much is computed.
            A reward function is called once and then replayed, with the numbers and tensors that it used then;
            gradients of parameters (``.grad``) belong to no update in particular.

    Everything else is as in Stable-Baselines3, except that, with hindsight, an unfinished episode ends in the replay
    buffer, as if truncated by a time limit, where the environment is reset or replaced. The TD part of the loss is
    logged under its name there; with a positive coefficient, also ``train/goal_gradient_loss``, the other part with its
    coefficient, and ``train/goal_gradient_share``, the share of transitions that count in it.
    """

    goal_gradient_coef: float = 0.0
    goal_gradient: GradientRule
    target_range: tuple[float, float] | None = None
    cuda_graphs: bool = False
    goal_statistics: GoalStatistics
    _normalization: NormalizedExtractor | None = None
    loss_name: ClassVar[str] = "critic_loss"
    gradient_scale: ClassVar[float] = 1.0  # of the algorithm's own critic loss; scales the new term, too

    def __init__(
        self,
        *args: Any,
        goal_gradient_coef: float = 0.0,
        goal_gradient: GradientRule | None = None,
        target_range: tuple[float, float] | None = None,
        cuda_graphs: bool = False,
        **kwargs: Any,
    ) -> None:
        check_range(target_range)
        self.target_range = None if target_range is None else (target_range[0], target_range[1])
        self.goal_gradient_coef = goal_gradient_coef
        if goal_gradient is not None:
            self.goal_gradient = goal_gradient
        self.goal_statistics = GoalStatistics()  # stays empty without GoalGradient.normalize
        self._reward_watch = RewardWatch()
        self.cuda_graphs = cuda_graphs
        if kwargs.get("policy_kwargs") is not None:  # a copy, to which Stable-Baselines3 adds options
            kwargs["policy_kwargs"] = dict(kwargs["policy_kwargs"])
        super().__init__(*args, **kwargs)
        if cuda_graphs and self.device.type != "cuda":
            raise ValueError(f"cuda_graphs: got True on the device {self.device}, expected a GPU; use device='cuda'")
        if self.goal_gradient_coef > 0 and kwargs.get("_init_setup_model", True):
            self.policy.set_training_mode(True)
            check_samples_apart(self.policy)  # here, so that agents trained otherwise can be loaded, and act

    def _setup_model(self) -> None:
        super()._setup_model()
        if not hasattr(self, "goal_gradient"):
            self.goal_gradient = getattr(self.policy, "goal_gradient", GoalGradient())
        check_options(self)
        self._normalization = share_statistics(self.policy)
        check_one_normalization(self._normalization, self._vec_normalize_env)
        if self._normalization is not None:
            if not isinstance(self.replay_buffer, HerReplayBuffer):
                raise ValueError(
                    "features_extractor_class: got NormalizedExtractor, whose statistics are those of episodes with "
                    "hindsight; it needs replay_buffer_class=rl.HerReplayBuffer"
                )
            self.replay_buffer.keep_fresh = True
        self._followers = [Follower(network, target) for network, target in self._targets()]
        self._recorder = None
        if self.cuda_graphs and self.device.type == "cuda":  # a saved model may be loaded without a GPU
            check_recordable(self)
            self._recorder = Recorder.on(self.device)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name == "MultiGoalPolicy" and policy_name not in self.policy_aliases:
            raise ValueError(
                f"policy: got 'MultiGoalPolicy' with {type(self).__name__}, expected it with rl.DDPG or rl.TD3; "
                "'MultiInputPolicy' is for environments with one goal at a time"
            )
        return super()._get_policy_from_name(policy_name)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Train in another environment from now on, which also computes the rewards of relabelled transitions.

        Unfinished episodes end in the replay buffer, as if truncated by a time limit.

        Raises:
            ValueError: if observations would be normalized twice, or the environment lacks what hindsight needs.
        """
        before, env = self.env, self._wrap_env(env, self.verbose)
        check_one_normalization(self._normalization, unwrap_vec_normalize(env))
        if isinstance(self.replay_buffer, HerReplayBuffer):
            self.replay_buffer.check(env)
        super().set_env(env, force_reset)
        if isinstance(self.replay_buffer, HerReplayBuffer):
            self.replay_buffer.ask(env)
        elif hasattr(self.replay_buffer, "env"):  # Stable-Baselines3's
            self.replay_buffer.env = env  # type: ignore[union-attr]
        if force_reset or env is not before:
            end_open_episodes(self.replay_buffer)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:  # the environment is reset; hindsight must not cross that
            end_open_episodes(self.replay_buffer)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    # The adapters.

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers that follow the learning rate."""
        raise NotImplementedError

    def _targets(self) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs of a network and the target network that follows it after the critic's step."""
        raise NotImplementedError

    def _begin(self, batch: Batch, logs: Logs) -> None:
        """Called before the critic's step."""

    def _next_value(self, batch: Batch, observation: Observation) -> NextValue:
        """The value of the next states; ``observation`` stands for ``batch.next_observations``."""
        raise NotImplementedError

    def _encode(self, observation: Observation, networks: Networks) -> Observation:
        """The input of the networks in place of an observation: a shared encoder is evaluated here, once.

        Args:
            networks: which networks: the targets, whose value is differentiated with respect to the goal alone; the
                critics, in their loss; or actor and critic, in the actor's loss.
        """
        return observation

    def _values(self, observation: Observation, batch: Batch) -> tuple[Tensor, ...]:
        """Each critic's value of the actions taken, ``[B, 1]``; ``observation`` stands for ``batch.observations``."""
        raise NotImplementedError

    def _plain_critic(self, batch: Batch) -> PlainCritic | None:
        """The critics as networks of linear layers and ReLU, if that is what they are."""
        return None

    def _td_loss(self, values: tuple[Tensor, ...], target: Tensor) -> Tensor:
        raise NotImplementedError

    def _descend_critic(self, loss: Tensor) -> None:
        raise NotImplementedError

    def _finish(self, batch: Batch, step: int, logs: Logs) -> None:
        """What comes after the critic's step."""

    def _kind(self, step: int) -> Hashable:
        """What :meth:`_finish` makes of the number of the update."""
        return None

    def _trains_as_upstream(self) -> bool:
        """Whether the critic's loss and the inputs are those of Stable-Baselines3, which is then reproduced bit for bit
        unless another option makes a difference."""
        return self.goal_gradient_coef == 0 and self._normalization is None and self.target_range is None

    def updates_are_alike(self) -> bool:
        """Whether updates do the same work on the device, whatever is in a minibatch."""
        return True

    # The loop.

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            *("_followers", "_entropy_coef", "_normalization", "_reward_watch", "_recorder"),
        ]

    def update_statistics(self) -> None:
        """Add the episodes finished since the last call to the statistics of NormalizedExtractor, if there is one."""
        if self._normalization is None:
            return
        if not isinstance(self.replay_buffer, HerReplayBuffer):
            raise ValueError(
                f"replay buffer: got {type(self.replay_buffer).__name__} for NormalizedExtractor, expected "
                "rl.HerReplayBuffer; one saved by an algorithm of Stable-Baselines3 lacks what the statistics need"
            )
        self.replay_buffer.keep_fresh = True  # the buffer may have been replaced
        fresh = self.replay_buffer.take_fresh()
        observations = {key: to_device(values, self.device) for key, values in fresh.items()}
        self._normalization.statistics.update(self._normalization.raw(observations))

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        assert self.replay_buffer is not None
        check_options(self)
        self._reward_watch.begin(self.goal_gradient, self.env)
        self.policy.set_training_mode(True)
        if self.goal_gradient_coef > 0:
            check_samples_apart(self.policy)
        recorder = self._recorder
        for optimizer in self.optimizers():  # here, since loading replaces options of optimizers
            exact = recorder is None and self._trains_as_upstream()
            make_faster(optimizer, exact=exact, recorded=recorder is not None)
        self._update_learning_rate(self.optimizers())
        self.update_statistics()
        logs, batch = Logs(), None
        with nullcontext() if recorder is None else recorder.session(surroundings(self)):
            for step in range(gradient_steps):
                self._n_updates += 1
                batch = cast(Batch, self.replay_buffer.sample(batch_size, env=self._vec_normalize_env))
                if recorder is None or self._update_waits_for_device():
                    results = self._update(batch, step)
                else:
                    results = recorder.run(self._kind(step), batch, partial(self._update, step=step))
                for name, value in results.items():
                    logs.add(name, value)
            means = logs.means()
        for name, mean in means.items():
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"train/{name}: got {mean} after {self._n_updates} updates, from which training cannot recover. "
                    + self._cause(batch)
                )
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, mean in means.items():
            self.logger.record(f"train/{name}", mean)

    def _cause(self, batch: Batch | None) -> str:
        """What may have made the parameters non-finite, for a message; ``batch`` is the last minibatch."""
        rewards = np.asarray(getattr(self.replay_buffer, "rewards", ()))
        drawn = np.zeros(0) if batch is None else batch.rewards.cpu().numpy()
        # relabelled rewards are in the minibatch only
        bad = [*rewards[~np.isfinite(rewards)][:1], *drawn[~np.isfinite(drawn)][:1]]
        if bad:
            return (
                f"The replay buffer has a reward of {bad[0]}, expected finite rewards; check step and compute_reward "
                "of the environment"
            )
        return (
            "A dense reward may have no finite gradient at some goals (a square root of 0 has none); else try a "
            "smaller learning rate or goal_gradient_coef"
        )

    def _update(self, batch: Batch, step: int) -> Results:
        """One update; returns what is to be logged."""
        logs = Logs()
        self._begin(batch, logs)
        self._descend_critic(self._critic_loss(batch, logs))
        self._finish(batch, step, logs)
        return logs.last()

    def _update_waits_for_device(self) -> bool:
        """Whether the next update has to wait for a result from the device."""
        return self.goal_gradient_coef > 0 and not self._reward_watch.settled

    def _critic_loss(self, batch: Batch, logs: Logs) -> Tensor:
        """The TD loss, and the goal-gradient term if it is switched on."""
        # buffers of n-step returns provide gamma to the power of the number of steps
        discount: Discount = self.gamma if batch.discounts is None else batch.discounts
        if self.goal_gradient_coef == 0:
            with torch.no_grad():
                value = self._next_value(batch, self._encode(batch.next_observations, "target")).target
                target = self._clip(td_target(batch.rewards, batch.dones, discount, value))
            loss = self._td_loss(self._values(self._encode(batch.observations, "critic"), batch), target)
            logs.add(self.loss_name, loss)
            return loss

        observation, variable = self.goal_gradient.attach(batch.next_observations)
        value = self._next_value(batch, self._encode(observation, "target"))
        next_gradient = slope(value.smooth, variable, differentiable=False)
        target = self._clip(td_target(batch.rewards, batch.dones, discount, value.target.detach()))
        reward_gradient = self.goal_gradient.reward_gradient(batch.next_observations)
        target_gradient = td_target_gradient(batch.dones, discount, next_gradient, reward_gradient)
        if not self._reward_watch.settled:
            self._reward_watch.look(batch, discount, self.gamma, reward_gradient, steps=self.num_timesteps)

        statistics = self.goal_statistics if self.goal_gradient.normalize else None
        if statistics is not None:
            statistics.update(batch.observations[GOAL])
        weight = self.goal_gradient.weight(batch.rewards, discount, self.gamma, statistics)
        values, slopes = self._values_and_slopes(batch)
        td_loss = self._td_loss(values, target)
        term = add_up([goal_gradient_loss(own, target_gradient, weight) for own in slopes])
        term = self.gradient_scale * self.goal_gradient_coef * term
        logs.add(self.loss_name, td_loss)
        logs.add("goal_gradient_loss", term)
        counts = (weight.expand_as(target_gradient) > 0).any(dim=1)
        logs.add("goal_gradient_share", counts.to(td_loss.dtype).mean())
        return td_loss + term

    def _clip(self, target: Tensor) -> Tensor:
        return target if self.target_range is None else target.clamp(*self.target_range)

    def _values_and_slopes(self, batch: Batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Values ``[B, 1]`` of the actions taken and their gradients ``[B, goal]``, of each critic."""
        plain = self._plain_critic(batch) if self.goal_gradient.plain else None
        if plain is not None:
            return plain.values_and_slopes()
        observation, variable = self.goal_gradient.attach(batch.observations)
        values = self._values(self._encode(observation, "critic"), batch)
        return values, tuple(slope(value, variable, differentiable=True) for value in values)


def show_arguments(algorithm: type[AlgorithmT]) -> type[AlgorithmT]:
    """Let ``help`` show all arguments: those of Stable-Baselines3, and those added here, as keywords and explained."""
    found: dict[str, inspect.Parameter] = {}
    for base in algorithm.__mro__:
        if "__init__" in vars(base):
            found = dict(inspect.signature(vars(base)["__init__"]).parameters) | found
            if not issubclass(base, GoalConditioned):
                break  # its signature names all arguments
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    shown = sorted((each for each in found.values() if each.kind not in several), key=lambda each: each.kind)

    def hand_on(self: Any, *args: Any, **kwargs: Any) -> None:
        super(algorithm, self).__init__(*args, **kwargs)

    own: Any = vars(algorithm).get("__init__", hand_on)  # not inherited, since subclasses have other signatures
    own.__signature__ = inspect.Signature(shown)
    own.__doc__ = _explained(algorithm)
    algorithm.__init__ = own
    return algorithm


def _explained(algorithm: type) -> str:
    """The arguments that this project adds to an algorithm, from the docstrings of the classes that take them."""
    blocks = []
    for base in algorithm.__mro__:
        if issubclass(base, GoalConditioned):
            _, _, rest = inspect.cleandoc(base.__doc__ or "").partition("Args:\n")
            blocks.append(rest.partition("\n\n")[0].rstrip())
    return "\n".join(["Args:", *filter(None, blocks), "    others: as in Stable-Baselines3."])


def add_up(losses: list[Tensor]) -> Tensor:
    """Their sum, in order."""
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total
