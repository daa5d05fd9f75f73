"""The environment over a recorded trace."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from cee_gym.envs.episode import EpisodeEnv, Observation, Outcome, vector_reward_space
from cee_gym.envs.render import Readings
from cee_gym.headroom import Headroom, headroom_of
from cee_gym.problem import ALPHA, OBSERVE, Problem, open_problem
from cee_gym.reward import Reward
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
    A float32 `Box` `[D]` made of the parts named in `observe`, in that order: by default the hidden
    state and the layer. `cee_gym.observation` lists the parts, and says how to add one.

    ## Rewards
    0 for continuing. Exiting at layer t gives `quality_t - alpha * price_t`: by default 1
    where its classifier is right and 0 where it is not, minus `alpha * t`. With `reward="paper"` it
    is minus the cross-entropy of its classifier, minus `alpha * (1 - m/L) * t` with m the memorized
    layer; see `cee_gym.Reward`.

    With `vector_reward=True` a reward is float32 `[quality_t, -price_t]`, `[0, 0]` for continuing,
    by the protocol of MO-Gymnasium (`reward_space`, `reward_dim`): its `LinearReward` with the
    weights `[1, alpha]` gives the scalar one. Make it with `mo_gymnasium.make`, or with
    `gymnasium.make` and `disable_env_checker=True`: Gymnasium's own checker wants numbers.

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
            taken as it is.
        split: `"train"`, `"calibration"`, `"dev"` or `"test"`.
        alpha: the price of one layer, or the range `(low, high)` from which each episode draws it.
        reward: a `cee_gym.Reward`; or `"paper"`, or the name of a quality, by default
            `"correctness"`, which is then paid for layers alike. Where its cost is measured,
            `metadata["deterministic"]` is False: under another profile the same episodes pay
            otherwise.
        observe: the parts of an observation.
        vector_reward: give quality and price apart, and leave the weighing to the learner.
        render_mode: `"ansi"`, a text, `"rgb_array"`, a picture, or `"human"`, a window. It shows
            the stack of layers, what each exit says and how sure it is, green where it is right and
            red where it is wrong, what full depth says, and the text where it is built in. `watch`
            shows a policy's scores too.

    Raises:
        CeeGymError: if there is no such recording or split, or an argument does not fit.

    ## Infos
    From `reset`: `instance` and `alpha`. When the episode ends: `exit_layer` and `memorized_layer`
    (from 1), `saved_layers` (`1 - exit_layer/L`), `prediction`, `correct` (also as `is_success`,
    from which Stable-Baselines3 draws the accuracy) and `reward_components` (`quality`, `price`).

    Attributes:
        problem: all states and rewards, for agents that use them; see `cee_gym.Problem`.
        arguments: what an environment over the same problem is made with.
    """

    def __init__(
        self,
        recording: str | None = None,
        trace: Trace | str | os.PathLike[str] | None = None,
        split: str = "train",
        alpha: float | Sequence[float] = ALPHA,
        reward: Reward | str = "correctness",
        observe: Sequence[str] = OBSERVE,
        vector_reward: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.problem = open_problem(
            recording, trace, split, reward=reward, observe=observe, alpha=alpha
        )
        self.arguments: dict[str, Any] = {
            "trace": self.problem.trace,
            "alpha": alpha,
            "reward": self.problem.reward,
            "observe": observe,
            "vector_reward": vector_reward,
        }
        self._alpha_column = self.problem.alpha_column
        super().__init__(
            num_instances=len(self.problem),
            depths=self.problem.trace.header.depths,
            layout=self.problem.layout,
            alpha=self.problem.alpha,
            reward_space=(
                vector_reward_space(self.problem.reward, self.problem.price)
                if vector_reward
                else None
            ),
            deterministic=self.problem.reward.deterministic,
            render_mode=render_mode,
        )

    def headroom(self, alpha: float | None = None) -> Headroom:
        """What fixed layers, a threshold, a learned policy and hindsight earn on this split.

        Args:
            alpha: the price of one layer; by default that of the environment.

        Raises:
            CeeGymError: if the environment draws alpha from a range and none is given, or there
                are too few rows.
        """
        return headroom_of(self.problem, alpha)

    def _enter_layer(self) -> None:
        pass

    def _observation(self) -> Observation:
        table = self.problem.recorded.table
        if table is None:
            at = np.array([self.instance]), np.array([self.layer])
            observation = self.problem.recorded.at(*at)[0]
        else:
            observation = table[self.instance, self.layer - 1].copy()
        if self._alpha_column is not None:
            observation[self._alpha_column] = self.alpha
        return observation

    def _outcome(self) -> Outcome:
        problem, at = self.problem, (self.instance, self.layer - 1)
        return Outcome(
            quality=float(problem.quality[at]),
            price=float(problem.price[at]),
            prediction=int(problem.prediction[at]),
            correct=bool(problem.correct[at]),
            memorized_layer=int(problem.memorized_layer[self.instance]),
        )

    def _readings(self) -> Readings:
        return readings(self.problem, self.instance, self.layer)


def readings(problem: Problem, instance: int, layer: int) -> Readings:
    """What the exits of layers 1 to `layer` say about an instance, and what the last one says."""
    from cee_gym.tasks.texts import built_in_texts  # it takes a second, and nobody else wants it

    trace = problem.trace
    texts = built_in_texts(trace.header.task) or {}
    return Readings(
        confidence=trace.confidence[instance, :layer],
        prediction=problem.prediction[instance, :layer],
        label=int(trace.labels[instance]),
        names=trace.header.labels,
        text=texts.get(str(trace.row_ids[instance])),
        full_depth=int(problem.prediction[instance, -1]),
    )
