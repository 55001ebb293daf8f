"""The policy for many goals at a time: actor and critic with an encoder of the set of goals.

Source: dissertation, Section 8.5 and Appendix G.6, whose numbers are used here.
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
    """Features ``[B, features]`` in place of an observation: ``critic``, those of its encoder, and ``actor``."""


class _Borrowed(nn.Module):
    """Another network's encoder, whose parameters do not become this network's."""

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
    """For ``rl.DDPG`` and ``rl.TD3``, and observations as in :mod:`rl.gates`: an encoder of state and goals, and heads.

    With ``goal_gradient_coef`` the gates of the goals are differentiated (:class:`rl.gates.GateGradient`), if no other
    rule is given. Defaults are those of Table G.4.

    Args:
        net_arch: widths of the hidden layers of the heads, ``[400]`` by default.
        encoder: ``deep-sets``, ``cnn`` (:class:`rl.goal_image.GoalImage`), ``attention``
            (:class:`rl.set_transformer.SetTransformer`), or a class.
        encoder_kwargs: arguments of the encoder after the observation space.
        share_encoder: one encoder for actor and critic, and one for their targets, trained by the critic's loss alone
            and followed by the target once per update. Otherwise each has its own, trained by its own loss (G.6.2).
        share_features_extractor: has to be False: Stable-Baselines3's sharing trains the encoder with the actor.

    Other arguments are those of Stable-Baselines3's policies for TD3.
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
                "share_features_extractor: got True, with which the actor trains the encoder; use share_encoder"
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
            self.make_actor(_Borrowed(critic.features_extractor) if self.share_encoder else None)  # type: ignore[arg-type]
            for critic in (self.critic, self.critic_target)
        )
        options: dict[str, Any] = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        for network, target in ((self.actor, self.actor_target), (self.critic, self.critic_target)):
            network.optimizer = self.optimizer_class(network.parameters(), **options)
            target.load_state_dict(network.state_dict())
            # so that differentiating a target's value by the gates leaves no trace of its encoder in memory
            target.requires_grad_(False)
            target.set_training_mode(False)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """An actor on encoded sets of goals."""
        return _GoalSetActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """Critics on encoded sets of goals."""
        return _GoalSetCritic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    def encode(self, observation: Observation, networks: Literal["target", "critic", "actor"]) -> Encoded:
        """The observation as some networks see it; an encoder that two of them share is evaluated once.

        Args:
            networks: ``target``, both target networks; ``critic``, the critics alone, in their loss; ``actor``, actor
                and critics in the actor's loss, which trains no encoder but an actor's own.
        """
        actor, critic = (self.actor_target, self.critic_target) if networks == "target" else (self.actor, self.critic)
        # the loop switches gradients off where it wants none; the actor's loss never trains the critic's encoder
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
