"""DeepSets: a sum over the goals that are there, each through one encoder (dissertation, Eqs. 8.15, 8.16, G.14)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from rl.gates import check_goal_set
from rl.goals import GOAL, Observation

STATE = "observation"
ROWS = 2048  # goals that go through the encoder together on a CPU: their hidden layers stay in its cache


class GoalSet(NamedTuple):
    """A multi-goal observation: state ``[B, state]``, items ``[B, n_max, item]``, gates ``[B, n_max]``."""

    state: Tensor
    items: Tensor
    gates: Tensor


class GoalSetEncoder(BaseFeaturesExtractor):
    """What encoders of sets of goals share: features are an embedding of state and goals, followed by the state.

    A features extractor of Stable-Baselines3. Its features may depend on goals only through the squares of their gates.

    Args:
        observation_space: see :mod:`rl.gates`; ``observation`` is the state.
        embedding_dim: of the embedding.
    """

    def __init__(self, observation_space: spaces.Dict, embedding_dim: int) -> None:
        self.check_positive(embedding_dim=[embedding_dim])
        n_max, item_dim = check_goal_set(observation_space, "policy")
        if not isinstance(observation_space.spaces.get(STATE), spaces.Box):
            raise ValueError(
                f"policy: got the observation space {observation_space}, expected a Box 'observation' in it"
            )
        state_dim = get_flattened_obs_dim(observation_space[STATE])
        super().__init__(observation_space, embedding_dim + state_dim)
        self.n_max, self.item_dim, self.state_dim, self.embedding_dim = n_max, item_dim, state_dim, embedding_dim

    @staticmethod
    def check_positive(**sizes: Sequence[int]) -> None:
        for name, values in sizes.items():
            if any(value < 1 for value in values):
                raise ValueError(f"{name}: got {values}, expected sizes of at least 1")

    def read(self, observation: Observation) -> GoalSet:
        """The parts of an observation, in the precision of this encoder; of the goals, gates alone have gradients.

        Items are cut off, since they are columns of the tensor that holds the gates: gradients with respect to gates
        would go through all of the encoder to find that those columns do not depend on them.
        """
        like = next(self.parameters())
        goal = observation[GOAL].to(like)
        return GoalSet(observation[STATE].to(like).flatten(1), goal[..., :-1].detach(), goal[..., -1])

    def forward(self, observation: Observation) -> Tensor:
        goals = self.read(observation)
        return torch.cat([self.embed(goals), goals.state], dim=1)

    def embed(self, goals: GoalSet) -> Tensor:
        """The embedding, ``[B, embedding_dim]``."""
        raise NotImplementedError


class DeepSets(GoalSetEncoder):
    """Embedding ``sum_i b_i^2 encoder(state, g_i) / n_max``, of any order of the goals.

    Eq. G.14 with a division that the text does not have: it only scales the encoder's outputs.

    Only goals that are there are evaluated, so that whatever stands in the other rows has no influence. The encoder
    does not depend on the gates: gradients with respect to them, ``2 b_i encoder(state, g_i) . dQ/d(embedding) /
    n_max``, are products with its outputs, and a loss of values and such gradients takes one backward pass through it.

    Args:
        layers: widths of the hidden layers of the encoder.
        embedding_dim: its outputs.
    """

    def __init__(
        self, observation_space: spaces.Dict, layers: Sequence[int] = (400, 400), embedding_dim: int = 20
    ) -> None:
        self.check_positive(layers=layers)
        super().__init__(observation_space, embedding_dim)
        modules: list[nn.Module] = []
        width = self.state_dim + self.item_dim
        for after in layers:
            modules += [nn.Linear(width, after), nn.ReLU(inplace=True)]
            width = after
        self.encoder = nn.Sequential(*modules, nn.Linear(width, embedding_dim))

    def embed(self, goals: GoalSet) -> Tensor:
        rows, columns = goals.gates.detach().nonzero(as_tuple=True)
        inputs = torch.cat([goals.state[rows], goals.items[rows, columns]], dim=1)
        parts = inputs.split(ROWS) if inputs.device.type == "cpu" else [inputs]
        encodings = torch.cat([self.encoder(part) for part in parts])
        weighted = encodings * goals.gates[rows, columns].square()[:, None]
        empty = weighted.new_zeros(len(goals.state), self.embedding_dim)
        return empty.index_add(0, rows, weighted) / self.n_max
