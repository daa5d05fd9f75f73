"""Runs an exported model in ONNX Runtime, each text only as far as the exit policy lets it."""

from pathlib import Path

from cee_gym.inference.pretrained import POLICY
from cee_gym.inference.runtime import EarlyExitRuntime
from cee_gym.onnx.model import OnnxModel
from cee_gym.policies.base import ExitPolicy


class OnnxRuntime(EarlyExitRuntime):
    """An exported model and an exit policy; see `EarlyExitRuntime`.

    For texts rather than token ids use `EarlyExitPipeline.from_pretrained`, which takes the
    directory as well.

    Args:
        directory: what `cee-gym export` or `export` wrote.
        policy: decides where to leave; by default the one that `cee-gym export` wrote there, at its
            own speed. `cee_gym.inference.pretrained.load_policy` gives it at another.
        threads: to compute with; None for as many as torch uses.

    Raises:
        CeeGymError: as `OnnxModel` and `EarlyExitRuntime`; or if there is no policy.
    """

    def __init__(
        self,
        directory: str | Path,
        policy: ExitPolicy | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        model = OnnxModel(directory, threads=threads)
        super().__init__(model, policy or ExitPolicy.load(model.directory / POLICY))
