"""The environment over a live model: its layers run one at a time, and stop at the exit."""

import copy
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.backbones.encoding import encode
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.cost import CostModel
from cee_gym.envs.episode import EpisodeEnv, Observation, Outcome, vector_reward_space
from cee_gym.envs.render import Readings
from cee_gym.errors import CeeGymError, DataError
from cee_gym.observation import Seen, Sizes, layout_of, observe_into, width_of
from cee_gym.problem import ALPHA, OBSERVE, Problem, shared_problem
from cee_gym.reward import QUALITIES, Reward, alpha_range
from cee_gym.traces.readout import Readout, read_out
from cee_gym.traces.trace import Trace, open_trace

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from cee_gym.exits.classifier import MultiExitModel


# What copies of an environment share; the calls of layers and their inputs are never written to.
_SHARED = ("model", "tokenizer", "data", "_mask", "_hidden", "_layers")


class LiveEarlyExitEnv(EpisodeEnv):
    """`EarlyExitEnv` over a model: layers after the exit are not run, and none runs twice.

    Spaces, rewards, episodes and infos are those of `EarlyExitEnv`; without a trace the infos have
    no `memorized_layer`. Each reset puts the model into eval mode; it runs on the device it is on.

    Args:
        model: a multi-exit model.
        tokenizer: its backbone's.
        data: rows with `text`, `label` (from 0), where there are two texts `pair`, and where a
            trace is given `row_id`.
        trace: a trace of this model, open or its path. It tells how hard each instance is; its rows
            are found by `row_id`.
        alpha: the price of one layer, or the range from which each episode draws it.
        reward: a `cee_gym.Reward`, or its short name. A hardness other than None needs the trace.
        observe: the parts of an observation.
        vector_reward: give quality and price apart, as `EarlyExitEnv` does.
        max_tokens: longer texts are cut; by default what the model was made for.
        render_mode: `"ansi"`, `"rgb_array"` or None.

    Raises:
        CeeGymError: if the trace is missing or lacks a row, a label is out of range, or an argument
            does not fit.
    """

    def __init__(
        self,
        model: "MultiExitModel",
        tokenizer: "PreTrainedTokenizerBase",
        data: "Dataset",
        *,
        trace: Trace | str | os.PathLike[str] | None = None,
        alpha: float | Sequence[float] = ALPHA,
        reward: Reward | str = "correctness",
        observe: Sequence[str] = OBSERVE,
        vector_reward: bool = False,
        max_tokens: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        alpha = alpha_range(alpha)
        self.model = model
        self.tokenizer = tokenizer
        self.data = data
        self.max_tokens = max_tokens or model.config.max_tokens
        _check_labels(data, model.num_labels)
        self._reward = pay = Reward.named(reward)
        if QUALITIES.get(pay.quality).deeper:
            raise CeeGymError(
                f"quality {pay.quality!r} looks at deeper exits than the one that is left, which a "
                "live environment does not run: use another one, or a recorded environment"
            )
        self._problem: Problem | None = None
        if trace is not None:
            trace = trace if isinstance(trace, Trace) else open_trace(trace)
            self._rows = _rows_in_trace(data, trace)
            if trace.num_layers != model.num_layers:
                raise CeeGymError(
                    f"the trace at {trace.path} has {trace.num_layers} layers, the model "
                    f"{model.num_layers}: give the trace of this model"
                )
            self._problem = shared_problem(trace, pay, OBSERVE, alpha)
        elif pay.hardness is None:
            if isinstance(pay.cost, CostModel):
                pay.cost.check_model(fingerprint(model))
            self._cost = pay.exit_cost(np.arange(1, model.num_layers + 1)).astype(np.float32)
        else:
            hardness = repr(pay.hardness) if isinstance(pay.hardness, str) else "of each instance"
            raise CeeGymError(
                f"hardness {hardness} is read from a trace of the model: give trace=PATH, or "
                "a reward with hardness=None, such as 'correctness'"
            )
        price = self._cost if self._problem is None else self._problem.price[self._rows]
        self._sizes = Sizes(model.num_layers, model.width, model.num_labels)
        super().__init__(
            num_instances=len(data),
            depths=range(1, model.num_layers + 1),
            layout=layout_of(observe, self._sizes),
            alpha=alpha,
            reward_space=vector_reward_space(pay, price) if vector_reward else None,
            deterministic=pay.deterministic,
            render_mode=render_mode,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Its episode and draws are its own; model and data, which never change, are shared."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        own = {name: value for name, value in vars(self).items() if name not in _SHARED}
        vars(twin).update(copy.deepcopy(own, memo))
        return twin

    @property
    def fingerprint(self) -> str:
        """Names the weights of the model."""
        return self.model.fingerprint

    def _enter_layer(self) -> None:
        with torch.inference_mode():
            if self.layer == 1:
                self.model.eval()
                self._label, inputs = self._encoded()
                self._mask = inputs["attention_mask"]
                self._hidden, self._layers = self.model.begin(inputs)
                self._states: list[npt.NDArray[np.float32]] = []
                self._logits: list[npt.NDArray[np.float32]] = []
            self._hidden = self._layers[self.layer - 1](self._hidden)
            state, logits = self.model.exit(self._hidden, self.layer, self._mask)
        self._states.append(state[0].float().cpu().numpy())
        self._logits.append(logits[0].float().cpu().numpy())

    def _read(self) -> Readout:
        """What the exits of layers 1 to the present one read, `[1, t]`."""
        logits = np.stack(self._logits)[None]
        return read_out(logits, np.full(logits.shape[:2], self._label))

    def _encoded(self) -> tuple[int, dict[str, torch.Tensor]]:
        row = self.data[self.instance]
        pairs = [row["pair"]] if "pair" in row else None
        inputs = encode(self.tokenizer, [row["text"]], pairs, self.max_tokens)
        device = next(self.model.parameters()).device
        return int(row["label"]), {name: tensor.to(device) for name, tensor in inputs.items()}

    def _observation(self) -> Observation:
        hidden, logits = np.stack(self._states)[None], np.stack(self._logits)[None]
        seen = Seen(np, self._sizes, (1, self.layer), self.alpha, hidden, logits)
        out = np.empty((1, self.layer, width_of(self.layout)), dtype=np.float32)
        observe_into(out, self.layout, seen)
        return out[0, -1].copy()

    def _outcome(self) -> Outcome:
        read, problem = self._read(), self._problem
        if problem is None:
            price, memorized_layer = self._cost, None
        else:
            row = self._rows[self.instance]
            price, memorized_layer = problem.price[row], int(problem.memorized_layer[row])
        return Outcome(
            quality=float(self._reward.quality_of(read)[0, -1]),
            price=float(price[self.layer - 1]),
            prediction=int(read.prediction[0, -1]),
            correct=bool(read.correct[0, -1]),
            memorized_layer=memorized_layer,
        )

    def _readings(self) -> Readings:
        read = self._read()
        return Readings(
            confidence=read.confidence[0],
            prediction=read.prediction[0],
            label=self._label,
            names=self.model.labels,
            text=self.data[self.instance]["text"],
        )


def _check_labels(data: "Dataset", num_labels: int) -> None:
    if missing := {"text", "label"} - set(data.column_names):
        raise DataError(f"the data has no column {' or '.join(sorted(missing))}")
    labels = np.asarray(data["label"][:])
    wrong = np.flatnonzero((labels < 0) | (labels >= num_labels))
    if len(wrong):
        raise DataError(
            f"row {wrong[0]} of the data has label {labels[wrong[0]]}: the model has classes 0 to "
            f"{num_labels - 1}"
        )


def _rows_in_trace(data: "Dataset", trace: Trace) -> npt.NDArray[np.int64]:
    if "row_id" not in data.column_names:
        raise DataError("the data has no column row_id, by which its rows are found in the trace")
    position = {row_id: row for row, row_id in enumerate(trace.row_ids.tolist())}
    row_ids = data["row_id"][:]
    for row_id in row_ids:
        if row_id not in position:
            raise DataError(
                f"the trace at {trace.path} has no row {row_id}: give the trace of this very data, "
                "or hardness=None"
            )
    return np.array([position[row_id] for row_id in row_ids], dtype=np.int64)
