"""The environment over a live model: its layers run one at a time, and stop at the exit."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.backbones.encoding import encode
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.cost import CostModel
from cee_gym.envs.episode import EpisodeEnv, Observation, Outcome, reward_space_of
from cee_gym.envs.render import Readings
from cee_gym.errors import CeeGymError, DataError
from cee_gym.hardness import memorized_layer
from cee_gym.observation import layout_of, width_of, write
from cee_gym.reward import Reward, alpha_range
from cee_gym.traces.trace import Readout, Trace, read_out

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from cee_gym.exits.classifier import MultiExitModel


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
        alpha: see `EarlyExitEnv`.
        hardness: see `cee_gym.Reward`; anything but None needs the trace.
        quality: see `cee_gym.Reward`.
        cost: see `cee_gym.Reward`.
        observe: see `EarlyExitEnv`.
        reward: see `EarlyExitEnv`.
        max_tokens: longer texts are cut; by default what the model was made for.
        render_mode: see `EarlyExitEnv`.

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
        alpha: float | Sequence[float] = 0.035,
        hardness: Any = "memorized_layer",
        quality: Any = "cross_entropy",
        cost: Any = "layers",
        observe: Sequence[str] = ("hidden", "layer"),
        reward: str = "scalar",
        max_tokens: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.data = data
        self.max_tokens = max_tokens or model.config.max_tokens
        _check_labels(data, model.num_labels)
        pay = Reward(quality=quality, hardness=hardness, cost=cost)
        self._quality = pay.quality
        self._memorized_layer: npt.NDArray[np.int64] | None = None
        if trace is not None:
            trace = trace if isinstance(trace, Trace) else Trace.open(trace)
            rows = _rows_in_trace(data, trace)
            if trace.num_layers != model.num_layers:
                raise CeeGymError(
                    f"the trace at {trace.path} has {trace.num_layers} layers, the model "
                    f"{model.num_layers}: give the trace of this model"
                )
            self._price = pay.tables(trace)[1][rows]
            self._memorized_layer = memorized_layer(trace.correct)[rows]
        elif hardness is None:
            if isinstance(pay.cost, CostModel):
                pay.cost.check_model(fingerprint(model))
            cost = pay.layer_cost(model.num_layers).astype(np.float32)
            self._price = np.broadcast_to(cost, (len(data), model.num_layers))
        else:
            raise CeeGymError(
                f"hardness {hardness!r} is read from a trace of the model: give trace=PATH, or "
                "hardness=None"
            )
        self._one_hot = np.eye(model.num_layers)
        super().__init__(
            num_instances=len(data),
            num_layers=model.num_layers,
            layout=layout_of(observe, model.num_layers, model.width, model.num_labels),
            alpha=alpha_range(alpha),
            reward_space=reward_space_of(reward, quality, self._price),
            deterministic=pay.deterministic,
            render_mode=render_mode,
        )

    def _enter_layer(self) -> None:
        with torch.inference_mode():
            if self.layer == 1:
                self.model.eval()
                self._label, inputs = self._encoded()
                self._mask = inputs["attention_mask"]
                self._hidden, self._layers = self.model.begin(inputs)
                self._read: list[Readout] = []
            self._hidden = self._layers[self.layer - 1](self._hidden)
            state, logits = self.model.exit(self._hidden, self.layer, self._mask)
        self._state = state[0].float().cpu().numpy()
        self._logits = logits[0].float().cpu().numpy()
        self._read.append(read_out(self._logits, np.asarray(self._label)))

    def _encoded(self) -> tuple[int, dict[str, torch.Tensor]]:
        row = self.data[self.instance]
        pairs = [row["pair"]] if "pair" in row else None
        inputs = encode(self.tokenizer, [row["text"]], pairs, self.max_tokens)
        device = next(self.model.parameters()).device
        return int(row["label"]), {name: tensor.to(device) for name, tensor in inputs.items()}

    def _observation(self) -> Observation:
        out = np.empty(width_of(self.layout), dtype=np.float32)
        write(
            out,
            self.layout,
            hidden=self._state,
            layer=self._one_hot[self.layer - 1],
            logits=self._logits,
            entropy=self._read[-1].entropy,
            confidence=self._read[-1].confidence,
            num_labels=self.model.num_labels,
            alpha=self.alpha,
        )
        return out

    def _outcome(self) -> Outcome:
        read = self._read[-1]
        prediction = int(read.prediction)
        correct = prediction == self._label
        memorized = self._memorized_layer
        return Outcome(
            quality=-float(read.loss) if self._quality == "cross_entropy" else float(correct),
            price=float(self._price[self.instance, self.layer - 1]),
            prediction=prediction,
            correct=correct,
            memorized_layer=None if memorized is None else int(memorized[self.instance]),
        )

    def _readings(self) -> Readings:
        return Readings(
            confidence=np.array([read.confidence for read in self._read]),
            prediction=np.array([read.prediction for read in self._read]),
            label=self._label,
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
