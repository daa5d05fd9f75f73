"""The environment over a recorded trace."""

import os
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from cee_gym.cost import CostModel
from cee_gym.envs.episode import EpisodeEnv, Observation, Outcome, reward_space_of
from cee_gym.envs.render import Readings
from cee_gym.problem import ExitTable, open_table
from cee_gym.traces.trace import Trace


class EarlyExitEnv(EpisodeEnv):
    """Early exit as optimal stopping over a recorded trace: everything is looked up.

    ## Description
    A transformer of L layers with a classifier at every layer reads an instance. After each layer
    the agent decides whether to leave with what that layer's classifier says, or to run the next
    layer. One episode is one instance.

    ## Action space
    `Discrete(2)`: 0 continues to the next layer, 1 exits. At layer L both exit.

    ## Observation space
    A float32 `Box` `[D]` made of the parts named in `observe`, in that order:

    | part | width | what it is | bounds |
    |---|---|---|---|
    | `hidden` | H | the pooled hidden state of the layer | those of float32 |
    | `layer` | L | the layer, one-hot | 0, 1 |
    | `probs` | C | the class probabilities its classifier gives | 0, 1 |
    | `entropy` | 1 | their entropy, divided by log C | 0, 1 |
    | `confidence` | 1 | the largest of them | 0, 1 |
    | `alpha` | 1 | the price of one layer in this episode | its range, or 0 up where fixed |

    ## Rewards
    0 for continuing. Exiting at layer t gives `quality_t - alpha * price_t`: by default minus the
    cross-entropy of its classifier, minus `alpha * (1 - m/L) * t` with m the memorized layer; see
    `cee_gym.Reward`.

    With `reward="vector"` a reward is float32 `[quality_t, -price_t]`, `[0, 0]` for continuing, by
    the protocol of MO-Gymnasium (`reward_space`, `reward_dim`): its `LinearReward` with the weights
    `[1, alpha]` gives the scalar one. Make it with `mo_gymnasium.make`, or `gymnasium.make` with
    `disable_env_checker=True`: Gymnasium's own checker wants numbers.

    ## Starting state
    Layer 1 of an instance drawn uniformly with replacement. Where `alpha` is a range, each episode
    draws its own. `reset(options={"instance": i, "alpha": a})` fixes either for one episode.

    ## Episode end
    Exiting terminates the episode, so it has exactly `exit_layer` steps; it is never truncated. The
    last observation is the state that was left.

    ## Arguments
    Args:
        recording: the id of a benchmark; an id that `gymnasium.make` knows brings it along.
        trace: instead, the path of a recording or of a single trace, or an open `Trace`, which is
            taken as it is. (`gymnasium.make` copies an open trace: give it a path.)
        split: `"train"`, `"calibration"`, `"dev"` or `"test"`.
        alpha: the price of one layer, or the range `(low, high)` from which each episode draws it.
        hardness: see `cee_gym.Reward`.
        quality: see `cee_gym.Reward`.
        cost: see `cee_gym.Reward`. Where it is measured, `metadata["deterministic"]` is False:
            under another profile the same episodes pay otherwise.
        observe: the parts of an observation.
        reward: `"scalar"`, or `"vector"`, which leaves the weighing to the learner.
        render_mode: `"ansi"`, a text, or `"rgb_array"`, a picture: the confidence of each layer,
            green where it is right, red where it is wrong, and a mark at the exit.

    Raises:
        CeeGymError: if there is no such recording or split, or an argument does not fit.

    ## Infos
    From `reset`: `instance` and `alpha`. When the episode ends: `exit_layer` and `memorized_layer`
    (from 1), `saved_layers` (`1 - exit_layer/L`), `prediction`, `correct` (also as `is_success`,
    from which Stable-Baselines3 draws the accuracy) and `reward_components` (`quality`, `price`).

    Attributes:
        table: all states and rewards, for agents that use them; see `cee_gym.problem.ExitTable`.
        arguments: what an environment over the same table is made with.
    """

    def __init__(
        self,
        recording: str | None = None,
        trace: Trace | str | os.PathLike[str] | None = None,
        split: str = "train",
        alpha: float | Sequence[float] = 0.035,
        hardness: str | npt.ArrayLike | None = "memorized_layer",
        quality: str = "cross_entropy",
        cost: str | os.PathLike[str] | CostModel | Sequence[float] = "layers",
        observe: Sequence[str] = ("hidden", "layer"),
        reward: str = "scalar",
        render_mode: str | None = None,
    ) -> None:
        self.table: ExitTable = open_table(
            recording, trace, split, alpha, hardness, quality, cost, observe
        )
        self.arguments: dict[str, Any] = {
            "trace": self.table.trace,
            "alpha": alpha,
            "hardness": hardness,
            "quality": quality,
            "cost": cost,
            "observe": observe,
            "reward": reward,
        }
        self._alpha_column = self.table.alpha_column
        super().__init__(
            num_instances=len(self.table.trace),
            num_layers=self.table.trace.num_layers,
            layout=self.table.layout,
            alpha=self.table.alpha,
            reward_space=reward_space_of(reward, quality, self.table.price),
            deterministic=self.table.deterministic,
            render_mode=render_mode,
        )

    @property
    def observations(self) -> Observation:
        """The observation of every state, float32 `[N, L, D]`, read-only."""
        return self.table.observations

    def _enter_layer(self) -> None:
        pass

    def _observation(self) -> Observation:
        observation: Observation = self.table.observations[self.instance, self.layer - 1].copy()
        if self._alpha_column is not None:
            observation[self._alpha_column] = self.alpha
        return observation

    def _outcome(self) -> Outcome:
        table, at = self.table, (self.instance, self.layer - 1)
        return Outcome(
            quality=float(table.quality[at]),
            price=float(table.price[at]),
            prediction=int(table.prediction[at]),
            correct=bool(table.correct[at]),
            memorized_layer=int(table.memorized_layer[self.instance]),
        )

    def _readings(self) -> Readings:
        return table_readings(self.table, self.instance, self.layer)


def table_readings(table: ExitTable, instance: int, layer: int) -> Readings:
    """What the classifiers of layers 1 to `layer` say about an instance."""
    return Readings(
        confidence=table.trace.confidence[instance, :layer],
        prediction=table.prediction[instance, :layer],
        label=int(table.trace.labels[instance]),
    )
