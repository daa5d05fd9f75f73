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
        model_directory: the model, with its tokenizer, such as RUN/round-0/models/deployed.
        output: a directory that does not exist yet, or is empty.
        int8: with the weights of layers and exits as 8-bit integers.
    """

    model_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    output: Path
    int8: bool = False

    def run(self) -> None:
        """Exports, and says how to run what was written."""
        from cee_gym.inference.export import export
        from cee_gym.models import load_tokenizer
        from cee_gym.training.phases import load_model

        quiet_transformers()
        model = load_model(self.model_directory)
        tokenizer = load_tokenizer(str(self.model_directory))
        export(model, self.output, tokenizer=tokenizer, int8=self.int8)
        print(f"wrote {model.num_layers} layers to {self.output}")
        print(f"to run it: cee_gym.inference.onnx_runtime.OnnxRuntime({str(self.output)!r}, agent)")
