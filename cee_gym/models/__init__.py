"""Transformers with an exit head at every layer."""

from cee_gym.models.encoding import EncodedText, encode, load_tokenizer
from cee_gym.models.multi_exit import MultiExitConfig, MultiExitModel, MultiExitOutput, load_model

__all__ = [
    "EncodedText",
    "MultiExitConfig",
    "MultiExitModel",
    "MultiExitOutput",
    "encode",
    "load_model",
    "load_tokenizer",
]
