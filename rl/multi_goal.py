"""The policy for many simultaneous goals: actor and critic on top of an encoder of the goal set.

Source: dissertation, Section 8.5 and Appendix G.6, whose table and section numbers are used here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import Tensor, nn

from rl.deep_sets import DeepSets, GoalSetEncoder
from rl.gates import GateGradient, check_goal_set
from rl.goal_image import GoalImage
from rl.goals import GradientRule, Observation
from rl.set_transformer import SetTransformer

ENCODERS: dict[str, type[GoalSetEncoder]] = {"deep-sets": DeepSets, "cnn": GoalImage, "attention": SetTransformer}


class Encoded(dict[str, Tensor]):
    """Features ``[B, features]`` in place of an observation, under the keys ``critic`` and ``actor``."""


class _SharedEncoder(nn.Module):
    """Another network's encoder, without registering its parameters as this network's."""

    def __init__(self, encoder: BaseFeaturesExtractor) -> None:
        super().__init__()
        self._encoder = (encoder,)  # in a tuple, so that it is not a submodule
        self.features_dim = encoder.features_dim

    def forward(self, observation: Observation) -> Tensor:
        return self._encoder[0](observation)


class _GoalSetActor(Actor):
    def extract_features(self, obs: Any, features_extractor: Any = None) -> Tensor:
        return obs["actor"] if isinstance(obs, Encoded) else self.features_extractor(obs)


class _GoalSetCritic(ContinuousCritic):
    def extract_features(self, obs: Any, features_extractor: Any = None) -> Tensor:
        return obs["critic"] if isinstance(obs, Encoded) else self.features_extractor(obs)


class MultiGoalPolicy(TD3Policy):
    """Policy for ``rl.DDPG`` and ``rl.TD3`` with the observations of :mod:`rl.gates`: an encoder followed by heads.

    A positive ``goal_gradient_coef`` differentiates with respect to the goals' gates (:class:`rl.gates.GateGradient`),
    unless another rule is given. Defaults are those of Table G.4.

    Args:
        net_arch: hidden layer widths of the heads, ``[400]`` by default.
        encoder: ``deep-sets``, ``cnn`` (:class:`rl.goal_image.GoalImage`), ``attention``
            (:class:`rl.set_transformer.SetTransformer`), or a class.
        encoder_kwargs: keyword arguments of the encoder besides the observation space.
        share_encoder: whether actor and critic share one encoder, and their targets another; the shared encoder is
            trained by the critic loss alone, and its target is updated once per update. Otherwise each has its own
            encoder, trained by its own loss (Appendix G.6.2).
        share_features_extractor: must be False: Stable-Baselines3's sharing would train the encoder with the actor.

    All other arguments are those of Stable-Baselines3's ``TD3Policy``.
    """

    goal_gradient: ClassVar[GradientRule] = GateGradient()

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        encoder: str | type[GoalSetEncoder] = "deep-sets",
        encoder_kwargs: dict[str, Any] | None = None,
        share_encoder: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
        share_features_extractor: bool = False,
    ) -> None:
        check_goal_set(observation_space, "policy")
        if isinstance(encoder, str) and encoder not in ENCODERS:
            raise ValueError(f"encoder: got {encoder!r}, expected one of {', '.join(ENCODERS)}, or a class")
        if share_features_extractor:
            raise ValueError(
                "share_features_extractor: got True, which lets the actor train the encoder; use share_encoder"
            )
        self.encoder, self.encoder_kwargs, self.share_encoder = encoder, dict(encoder_kwargs or {}), share_encoder
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[400] if net_arch is None else net_arch,
            activation_fn=activation_fn,
            features_extractor_class=ENCODERS[encoder] if isinstance(encoder, str) else encoder,
            features_extractor_kwargs=self.encoder_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            n_critics=n_critics,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self.critic, self.critic_target = self.make_critic(), self.make_critic()
        self.actor, self.actor_target = (
            self.make_actor(_SharedEncoder(critic.features_extractor) if self.share_encoder else None)  # type: ignore[arg-type]
            for critic in (self.critic, self.critic_target)
        )
        options: dict[str, Any] = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        for network, target in ((self.actor, self.actor_target), (self.critic, self.critic_target)):
            network.optimizer = self.optimizer_class(network.parameters(), **options)
            target.load_state_dict(network.state_dict())
            # differentiating a target value with respect to the gates then stores no graph of the target's encoder
            target.requires_grad_(False)
            target.set_training_mode(False)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """An actor on encoded goal sets."""
        return _GoalSetActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """Critics on encoded goal sets."""
        return _GoalSetCritic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    def encode(self, observation: Observation, networks: Literal["target", "critic", "actor"]) -> Encoded:
        """The observation as the given networks see it; an encoder that two of them share is evaluated once.

        Args:
            networks: ``target`` for both target networks; ``critic`` for the critics alone, in their loss; ``actor``
                for actor and critics in the actor loss, which trains no encoder except one that the actor owns.
        """
        actor, critic = (self.actor_target, self.critic_target) if networks == "target" else (self.actor, self.critic)
        # the training loop itself disables gradients where none are needed; the actor loss never trains the critic's
        # encoder
        with torch.set_grad_enabled(torch.is_grad_enabled() and networks != "actor"):
            features = critic.features_extractor(observation)
        if networks == "critic":
            return Encoded(critic=features)
        return Encoded(critic=features, actor=features if self.share_encoder else actor.features_extractor(observation))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        for name in ("features_extractor_class", "features_extractor_kwargs", "share_features_extractor"):
            del data[name]
        data.pop("normalize_images", None)
        return data | {
            "encoder": self.encoder,
            "encoder_kwargs": self.encoder_kwargs,
            "share_encoder": self.share_encoder,
        }
