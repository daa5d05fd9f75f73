"""Runs an exported model in ONNX Runtime, each text only as far as the exit policy lets it."""

from pathlib import Path

from cee_gym.errors import CeeGymError
from cee_gym.inference.runtime import EarlyExitRuntime
from cee_gym.onnx.model import OnnxModel
from cee_gym.policies.base import ExitPolicy


class OnnxRuntime(EarlyExitRuntime):
    """An exported model and an exit policy; see `EarlyExitRuntime`.

    Args:
        directory: what `export` wrote.
        policy: decides where to leave.
        threads: to compute with; None for as many as torch uses.

    Raises:
        CeeGymError: as `OnnxModel` and `EarlyExitRuntime`; or if the policy leaves, or looks, where
            the model was exported without an exit.
    """

    def __init__(
        self,
        directory: str | Path,
        policy: ExitPolicy,
        *,
        threads: int | None = None,
    ) -> None:
        model = OnnxModel(directory, threads=threads)
        super().__init__(model, policy)
        if missing := sorted(self._read.difference(model.exit_layers)):
            raise CeeGymError(
                f"this {policy.name} policy needs exits at layers {missing}, but the model at "
                f"{directory} was exported with {model.exit_layers}: export it with those"
            )
