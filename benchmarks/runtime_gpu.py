"""The runtime on a GPU, at the size of BERT-base: what is left of the layers that are saved?

    python benchmarks/runtime_gpu.py

Weights are random and exits are drawn, since neither changes the time of a layer. Every row leaves
each layer with the same probability, which is chosen for the wanted layer speed-up. The rule asks
at every layer, so that the host waits for the GPU after each. It is compared with transformers' own
forward of all layers, in the same precision, on the same rows, in turn.
"""

import time
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
import tyro
from common import write
from transformers import BertConfig

from cee_gym.exits.classifier import MultiExitConfig, MultiExitModel
from cee_gym.inference.runtime import EarlyExitRuntime
from cee_gym.observation import Sizes, layout_of
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import RandomExit


@dataclass
class Args:
    """Arguments.

    Attributes:
        device: to measure on.
        rounds: of each setting; the median is reported.
        layers: of the model.
        width: of the model.
    """

    device: str = "cuda"
    rounds: int = 15
    layers: int = 12
    width: int = 768


def probability(wanted: float, layers: int) -> float:
    """With which a row has to leave each layer, for this layer speed-up."""
    grid = np.linspace(0, 1, 10_001)
    stay = (1 - grid)[:, None] ** np.arange(layers)
    return float(grid[np.abs(layers / stay.sum(axis=1) - wanted).argmin()])


def seconds(run: object, device: torch.device) -> float:
    """Of one call."""
    torch.cuda.synchronize() if device.type == "cuda" else None
    begun = time.perf_counter()
    run()  # type: ignore[operator]
    torch.cuda.synchronize() if device.type == "cuda" else None
    return time.perf_counter() - begun


def main(args: Args) -> None:
    """Measures every batch size, length and precision."""
    device = torch.device(args.device)
    shape = BertConfig(
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64,
        intermediate_size=4 * args.width,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    config = MultiExitConfig(shape, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    config._attn_implementation = "sdpa"
    model = MultiExitModel(config).to(device).eval()
    sizes = Sizes(model.num_layers, model.width, model.num_labels)
    layout = layout_of(("layer",), sizes)
    settings = []
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        for batch_size in (1, 8, 32, 128):
            for length in (32, 128):
                ids = torch.randint(1, 1000, (batch_size, length))
                inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                there = {name: tensor.to(device) for name, tensor in inputs.items()}

                def whole(there: object = there) -> None:
                    with torch.inference_mode():
                        model.backbone(**there)  # type: ignore[arg-type]

                for wanted in (1.5, 2.0):
                    rule = RandomExit(probability=probability(wanted, args.layers))
                    runtime = EarlyExitRuntime(model, ExitPolicy(rule, layout, float(rule.least)))
                    exits = []

                    def early(runtime=runtime, inputs=inputs, exits=exits) -> None:
                        exits.append(runtime(inputs).exit_layer.mean())

                    for _ in range(3):
                        whole()
                        early()
                    exits.clear()
                    turns = [
                        (seconds(whole, device), seconds(early, device)) for _ in range(args.rounds)
                    ]
                    full, left = (median(turn[side] for turn in turns) for side in (0, 1))
                    speedup = args.layers / float(np.mean(exits))
                    settings.append(
                        {
                            "precision": str(dtype).removeprefix("torch."),
                            "batch_size": batch_size,
                            "length": length,
                            "layer_speedup": speedup,
                            "wall_clock_speedup": full / left,
                            "ratio": full / left / speedup,
                            "milliseconds_full_depth": 1000 * full,
                            "milliseconds_early_exit": 1000 * left,
                        }
                    )
                    print(settings[-1], flush=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    write(
        "runtime_gpu",
        {"device": name, "layers": args.layers, "width": args.width, "settings": settings},
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
