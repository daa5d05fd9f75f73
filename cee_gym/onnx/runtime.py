"""Runs an exported model in ONNX Runtime, each text only as far as the exit policy lets it."""

from pathlib import Path

from cee_gym.agents.base import Agent
from cee_gym.errors import CeeGymError
from cee_gym.inference.runtime import EarlyExitRuntime
from cee_gym.onnx.model import OnnxModel


class OnnxRuntime(EarlyExitRuntime):
    """An exported model and an exit policy; see `EarlyExitRuntime`.

    Args:
        directory: what `export` wrote.
        agent: decides where to leave.
        threshold: a text leaves at the first layer with a score above it.
        threads: to compute with; None for as many as torch uses.

    Raises:
        CeeGymError: as `OnnxModel` and `EarlyExitRuntime`; or if the policy leaves, or looks, where
            the model was exported without an exit.
    """

    def __init__(
        self,
        directory: str | Path,
        agent: Agent,
        *,
        threshold: float = 0.5,
        threads: int | None = None,
    ) -> None:
        model = OnnxModel(directory, threads=threads)
        super().__init__(model, agent, threshold=threshold)
        if missing := sorted(self._read.difference(model.exit_layers)):
            raise CeeGymError(
                f"this {agent.name} agent needs exits at layers {missing}, but the model at "
                f"{directory} was exported with {model.exit_layers}: export it with those"
            )
