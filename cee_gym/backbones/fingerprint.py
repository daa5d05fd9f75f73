"""Names a model by its weights."""

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """Names the weights: equal for two models if and only if all their weights are.

    Returns:
        16 hexadecimal digits, of the SHA-256 of all weights.
    """
    return fingerprint_of_tensors(model.state_dict())


def fingerprint_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Names tensors by their names, in this order, and their bytes: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        # A tensor without dimensions cannot be viewed as bytes.
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
