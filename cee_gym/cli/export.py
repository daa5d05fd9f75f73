"""`cee-gym export`: a model as ONNX graphs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from cee_gym.cli.arguments import SpeedArguments, loading
from cee_gym.cli.options import command
from cee_gym.errors import CeeGymError
from cee_gym.hold import hold


@command("export")
@dataclass(frozen=True)
class Export:
    """Writes a classifier with exits as ONNX graphs, one for each layer, for ONNX Runtime.

    The exit policy, the operating points that were kept, the tokenizer and the labels are written
    too, so that `predict`, `serve` and `EarlyExitPipeline` take the directory.

    Attributes:
        model: A saved directory, a run of train, a name on the hub, or the directory of a model
            with exits, such as RECORDING/models/deployed, which has no policy.
        output: A directory that does not exist yet, or is empty.
        int8: Store the weights of layers and exits as 8-bit integers.
        speed: How fast the policy should be.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    output: Path
    int8: bool = False
    speed: SpeedArguments = field(default_factory=SpeedArguments)

    def run(self) -> None:
        """Exports, and says how to run what was written."""
        from cee_gym.inference.pretrained import find_policy, has_policy, save_policy, weights_in

        speed, directory = self.speed.speed(), loading(self.model)
        from cee_gym.backbones.encoding import load_tokenizer
        from cee_gym.exits import load_model
        from cee_gym.onnx.export import export

        known = find_policy(directory) if has_policy(directory) else None
        if known is None and speed.given:
            raise CeeGymError(
                f"{self.speed.option} is of a policy, and there is none with the model at "
                f"{self.model}: give a run, or what save_pretrained wrote"
            )
        if known is not None:
            policy, measured = known
            known = measured.at(speed, policy)
        weights = weights_in(directory)
        model, tokenizer = load_model(weights), load_tokenizer(str(weights))
        with hold(self.output):
            export(model, self.output, tokenizer=tokenizer, int8=self.int8)
            if known is not None:
                save_policy(*known, self.output)
        print(f"wrote {model.num_layers} layers to {self.output}")
        if known is None:
            print(f"to run it: cee_gym.onnx.runtime.OnnxRuntime({str(self.output)!r}, policy)")
            return
        print(f"to run it: cee-gym predict {self.output} --input FILE, cee-gym serve {self.output}")
