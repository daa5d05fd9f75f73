"""`cee-gym export`: a model as ONNX graphs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cee_gym.cli.arguments import quiet_transformers


@dataclass(frozen=True)
class Export:
    """Writes a multi-exit model as ONNX graphs, one a layer, for ONNX Runtime.

    Attributes:
        model: a directory that was saved, a run of train, a name on the hub, or the directory of a
            model with exits, such as RECORDING/models/deployed.
        output: a directory that does not exist yet, or is empty.
        int8: with the weights of layers and exits as 8-bit integers.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    output: Path
    int8: bool = False

    def run(self) -> None:
        """Exports, and says how to run what was written."""
        from cee_gym.backbones.encoding import load_tokenizer
        from cee_gym.exits import load_model
        from cee_gym.inference.pretrained import weights_directory
        from cee_gym.onnx.export import export

        quiet_transformers()
        weights = weights_directory(self.model)
        model, tokenizer = load_model(weights), load_tokenizer(str(weights))
        export(model, self.output, tokenizer=tokenizer, int8=self.int8)
        print(f"wrote {model.num_layers} layers to {self.output}")
        print(f"to run it: cee_gym.onnx.runtime.OnnxRuntime({str(self.output)!r}, policy)")
