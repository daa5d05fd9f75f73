"""An exported model, as `EarlyExitRuntime` takes it: its layers and exits run in ONNX Runtime."""

import hashlib
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from cee_gym.backbones.layers import LayerCall
from cee_gym.documents import read_document, refused_if_damaged
from cee_gym.errors import CeeGymError
from cee_gym.exits.classifier import MultiExitConfig
from cee_gym.inference.pretrained import EXPORTED

VERSION = 2
OUTPUTS = ["hidden_after", "state", "logits"]


class OnnxModel:
    """What `EarlyExitRuntime` asks of a model, computed by ONNX Runtime on the CPU.

    Any number of threads may use it.

    Args:
        directory: what `export` wrote.
        threads: to compute with; None for as many as torch uses.

    Attributes:
        fingerprint: of the weights it was exported from.
        config: of the model it was exported from.
        labels: the C class names, in the order of the logits.
        num_layers: L.
        width: H.
        num_labels: C.
        exit_layers: where a policy may leave, from 1; the last is among them.
        dtype: of the weights of layers and exits, float32 or int8.

    Raises:
        CeeGymError: if there is none, it is damaged or of another version, or onnxruntime is
            missing.
    """

    device = torch.device("cpu")
    training = False

    def __init__(self, directory: str | Path, *, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise CeeGymError(
                'exported models need onnxruntime: pip install "cee-gym[export]"'
            ) from None
        self.directory = Path(directory)
        description = read_document(
            self.directory / EXPORTED,
            "exported model",
            remedy="export it again",
            versions=[VERSION],
        )
        with refused_if_damaged(f"the exported model at {directory}", "export it again"):
            self.fingerprint: str = description["model"]
            self.num_layers: int = description["num_layers"]
            self.width: int = description["width"]
            self.exit_layers: list[int] = description["exit_layers"]
            self.dtype = torch.int8 if description["int8"] else torch.float32
            self._inputs: list[str] = description["inputs"]
            files = dict(description["files"])
        for name, expected in files.items():
            path = self.directory / name
            if not path.exists() or digest(path) != expected:
                raise CeeGymError(f"{path} is missing or damaged: export the model again")
        self.config = MultiExitConfig.from_pretrained(self.directory)
        self.labels = self.config.labels
        self.num_labels = len(self.labels)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        # Each graph has threads of its own, and those of one are not to wait in a loop while the
        # next one runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")

        def session(name: str) -> Any:
            return onnxruntime.InferenceSession(
                self.directory / name, options, providers=["CPUExecutionProvider"]
            )

        self._embedding = session("embedding.onnx")
        self._segments = {end: _Segment(session(f"segment-{end}.onnx")) for end in self.exit_layers}
        self.exits = [_Exit()] * self.num_layers

    def eval(self) -> Self:
        """Itself: there is no other mode."""
        return self

    def to(self, device: torch.device) -> Self:
        """Itself.

        Raises:
            CeeGymError: if the device is not the CPU, where it runs.
        """
        if device.type != "cpu":
            raise CeeGymError(f"an exported model runs on the CPU, not on {device}")
        return self

    def begin(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[LayerCall]]:
        """See `EarlyExitModel.begin`; of the layers of a segment the last one runs them all."""
        padding = inputs["attention_mask"]
        arrays = {
            name: (inputs[name] if name in inputs else torch.zeros_like(padding)).numpy()
            for name in self._inputs
        }
        hidden, *passed = map(torch.from_numpy, self._embedding.run(None, arrays))
        return hidden, [
            LayerCall(self._segments[layer], tuple(passed), {})
            if layer in self._segments
            else LayerCall(nn.Identity(), (), {})
            for layer in range(1, self.num_layers + 1)
        ]


class _Segment(nn.Module):
    def __init__(self, session: Any) -> None:
        super().__init__()
        self._run = session.run
        self._names = [given.name for given in session.get_inputs()]

    def forward(self, hidden: torch.Tensor, *passed: torch.Tensor) -> torch.Tensor:
        given = [tensor.numpy() for tensor in (hidden, *passed)]
        outputs = self._run(OUTPUTS, dict(zip(self._names, given, strict=True)))
        after, state, logits = map(torch.from_numpy, outputs)
        # One graph gives all three: to start another for state and logits would take its time.
        after.at_exit = state, logits  # type: ignore[attr-defined]
        return after


class _Exit:
    """An `ExitReader`."""

    def weights(self, attention_mask: torch.Tensor, dtype: torch.dtype) -> None:
        """None: the graphs are given them."""

    def __call__(
        self, hidden: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden.at_exit  # type: ignore[attr-defined]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
