"""Generation: every token decides its own depth."""

from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.generation.decoding import EarlyExitDecoding, TokenExits

__all__ = ["EarlyExitDecoding", "MultiExitDecoder", "TokenExits"]
