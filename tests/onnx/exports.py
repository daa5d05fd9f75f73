"""Small models, exported once."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch

from cee_gym.exits import MultiExitConfig, MultiExitModel
from cee_gym.onnx.export import export
from tests.conftest import tiny_config
from tests.inference.test_runtime import NUM_LABELS


@cache
def small(family: str, pooling: str = "first", num_layers: int = 2) -> MultiExitModel:
    """Of few layers. Tracing takes seconds whatever the size: most families are marked slow."""
    config = tiny_config(family)
    config.num_hidden_layers = num_layers
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = MultiExitModel(MultiExitConfig(config, num_labels=NUM_LABELS, pooling=pooling))
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@cache
def exported(family: str, pooling: str = "first") -> Path:
    directory = Path(mkdtemp()) / "exported"
    export(small(family, pooling), directory)
    return directory


def copy_of(directory: Path, to: Path) -> Path:
    to.mkdir()
    for path in directory.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to
