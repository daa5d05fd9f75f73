"""What running each layer of a multi-exit model takes, measured on one machine and kept as JSON.

`cee-gym profile` measures; see `cee_gym.measuring`. A `CostModel` can be the cost of a
reward in place of the layer number.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cee_gym.documents import read_document, write_document
from cee_gym.errors import CeeGymError, first_line

FORMAT = "cee-gym cost model"
VERSION = 1
# What is measured by default. Below some hundred tokens time is no straight line: so few rows leave
# a matrix product waiting for its weights. So small sizes lie close together.
BATCH_SIZES = (1, 2, 4, 8, 32, 128)
LENGTHS = (8, 16, 32, 64, 128)
Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class CostModel:
    """Seconds of each part of a model, by batch size and length. B sizes, T lengths, L layers.

    Between measured sizes everything is bilinear in batch size and length: between neighbours it is
    a constant, a part per row, a part per token of length and a part per row and token. Beyond the
    edge the outermost sizes go on.

    Attributes:
        batch_sizes: `[B]`, rising, at least two.
        lengths: `[T]` in tokens, rising, at least two.
        embedding: float64 `[B, T]`, what comes before the first layer.
        layers: float64 `[L, B, T]`.
        heads: float64 `[L, B, T]`, pooler, classifier and what the policy observes; 0 at layers
            where it does not look.
        policy: float64 `[L, B, T]`, the decision and taking out of the batch what leaves; 0 where
            the policy is not asked, as at the last layer, and if no agent was measured.
        model: the fingerprint of its weights, as in the header of a trace.
        machine: processor, threads, device, dtype and versions.
        typical: batch size and length of the reward, for which it takes one cost per layer.
        depths: of a decoder, how many layers there are up to each of its L exits; None where every
            layer has one.
    """

    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    embedding: Seconds
    layers: Seconds
    heads: Seconds
    policy: Seconds
    model: str
    machine: Mapping[str, Any]
    typical: tuple[int, int]
    depths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.depths is not None:
            object.__setattr__(self, "depths", tuple(map(int, self.depths)))
        for name in ("batch_sizes", "lengths", "typical"):
            sizes = tuple(map(int, getattr(self, name)))
            object.__setattr__(self, name, sizes)
            if len(sizes) < 2 or min(sizes) < 1:
                raise CeeGymError(f"{name} must be at least two numbers from 1 up, got {sizes}")
        for name in ("batch_sizes", "lengths"):
            sizes = getattr(self, name)
            if list(sizes) != sorted(set(sizes)):
                raise CeeGymError(f"{name} must rise, got {sizes}")
        grid = (len(self.batch_sizes), len(self.lengths))
        for name in ("embedding", "layers", "heads", "policy"):
            seconds = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, seconds)
            shape = grid if name == "embedding" else (len(self.layers), *grid)
            if seconds.shape != shape or not (np.isfinite(seconds) & (seconds >= 0)).all():
                raise CeeGymError(
                    f"{name} must be {list(shape)} numbers of seconds, got {list(seconds.shape)}"
                )
        if not self.layers.any():
            raise CeeGymError("layers take no time")
        if self.depths is not None and (
            len(self.depths) != len(self.layers)
            or list(self.depths) != sorted(set(self.depths))
            or self.depths[0] < 1
        ):
            raise CeeGymError(
                f"depths must be {len(self.layers)} rising numbers of layers, got {self.depths}"
            )

    def __repr__(self) -> str:
        return (
            f"<CostModel of {self.model}: {self.num_layers} layers, measured at batch sizes "
            f"{', '.join(map(str, self.batch_sizes))} and {', '.join(map(str, self.lengths))} "
            "tokens; not deterministic>"
        )

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def full_depth(self) -> int:
        """Layers up to the last exit."""
        return self.num_layers if self.depths is None else self.depths[-1]

    def seconds(
        self, part: Seconds, batch_size: npt.ArrayLike, length: npt.ArrayLike
    ) -> npt.NDArray[np.float64]:
        """What a part takes at some sizes, measured or not.

        Args:
            part: one of the tables, `[..., B, T]`.
            batch_size: rows of a batch, numbers of any shape S.
            length: its tokens a row, numbers that broadcast with them.

        Returns:
            float64 `[..., *S]`; 0 where the batch is empty.
        """
        rows, tokens = np.broadcast_arrays(
            np.asarray(batch_size, dtype=np.float64), np.asarray(length, dtype=np.float64)
        )
        i, u = _cell(self.batch_sizes, rows)
        j, v = _cell(self.lengths, tokens)
        bilinear = (1 - u) * ((1 - v) * part[..., i, j] + v * part[..., i, j + 1]) + u * (
            (1 - v) * part[..., i + 1, j] + v * part[..., i + 1, j + 1]
        )
        return np.where(rows > 0, bilinear.clip(min=0.0), 0.0)

    def layer_costs(
        self, batch_size: int | None = None, length: int | None = None
    ) -> npt.NDArray[np.float64]:
        """What leaving at each exit costs, in layers: float64 `[L]`, cumulative.

        Embedding, layers, heads and the decisions to go on. The unit is the mean over layers of
        what one adds, so that the last exit costs the number of layers and the embedding.

        Args:
            batch_size: by default the typical one.
            length: in tokens; by default the typical one.

        Raises:
            CeeGymError: if no layer takes any time at this size, as may come out where the times
                that were measured go on beyond the smallest size.
        """
        rows, tokens = batch_size or self.typical[0], length or self.typical[1]
        steps = self.seconds(self.layers + self.heads + self.policy, rows, tokens)
        if not steps.any():
            raise CeeGymError(
                f"by the profile no layer takes any time at batch size {rows} and {tokens} tokens, "
                "which is beyond what was measured: profile as far as there"
            )
        start = self.seconds(self.embedding, rows, tokens)
        return (start + np.cumsum(steps)) * (self.full_depth / steps.sum())

    def at(self, batch_size: int, length: int) -> Self:
        """This model with another typical size, for a reward."""
        return replace(self, typical=(batch_size, length))

    def check_model(self, model: str | None) -> None:
        """Refuses the states of another model than the one that was measured.

        Args:
            model: the fingerprint in a trace's header; None where it is not known.

        Raises:
            CeeGymError: naming both.
        """
        if model is not None and model != self.model:
            raise CeeGymError(
                f"the profile is of model {self.model}, the trace of model {model}: profile that "
                "one (cee-gym profile)"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON."""
        values = asdict(self)
        for name in ("embedding", "layers", "heads", "policy"):
            values[name] = values[name].tolist()
        write_document(path, {"format": FORMAT, "version": VERSION, **values})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote.

        Raises:
            CeeGymError: if there is none, it is damaged, foreign or of another version.
        """
        values = read_document(
            path, "profile", remedy="profile again", format=FORMAT, versions={VERSION}
        )
        del values["format"], values["version"]
        try:
            return cls(**values)
        except (ValueError, TypeError, OverflowError) as error:
            raise CeeGymError(
                f"the profile at {path} is damaged ({first_line(error)}): profile again"
            ) from None


def _cell(
    grid: tuple[int, ...], at: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Between which two neighbours a number lies, and how far: below 0 or above 1 at the edges."""
    edges = np.array(grid, dtype=np.float64)
    left = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, len(grid) - 2)
    return left, (at - edges[left]) / (edges[left + 1] - edges[left])
