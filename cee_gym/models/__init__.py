"""Transformers with an exit head at every layer."""

from cee_gym.models.encoding import EncodedText, encode, load_tokenizer
from cee_gym.models.multi_exit import MultiExitConfig, MultiExitModel, MultiExitOutput

__all__ = [
    "EncodedText",
    "MultiExitConfig",
    "MultiExitModel",
    "MultiExitOutput",
    "encode",
    "load_tokenizer",
]
