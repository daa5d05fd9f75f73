"""What is read off a layer: a state, and what that exit would answer."""

from cee_gym.exits.classifier import (
    MultiExitConfig,
    MultiExitModel,
    MultiExitOutput,
    load_model,
)

__all__ = ["MultiExitConfig", "MultiExitModel", "MultiExitOutput", "load_model"]
