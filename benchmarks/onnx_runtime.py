"""Early exit in ONNX Runtime against the same model at full depth in ONNX Runtime, on the clock.

    OMP_NUM_THREADS=1 python benchmarks/onnx_runtime.py TASK MODEL RECORDING DATA

MODEL is a multi-exit model, RECORDING what it recorded, DATA the text. The policy is the confidence
rule, whose thresholds are chosen on calibration for layer speed-ups of about 1.5 and 2, before
anything is timed.

Full depth is one graph of all layers and the last exit head, early exit one graph a layer; both
come from the same export and run with the same settings and threads, in float32 and in 8-bit
integers. How they are timed, and what the figures are called, stands in `runtime.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import torch
import tyro
from common import write
from runtime import LAYER_SPEEDUPS, Batches, Inputs, confidence_at_speeds, in_turn, some_batches

from cee_gym.backbones.encoding import EncodedText, load_tokenizer
from cee_gym.exits import load_model
from cee_gym.inference import EarlyExitRuntime, Exits
from cee_gym.onnx.export import export, export_full_depth
from cee_gym.onnx.runtime import OnnxRuntime
from cee_gym.tasks import get_task, load_splits
from cee_gym.traces.recordings import open_split

BATCH_SIZES = (1, 8, 32)
WANTED = 0.85


@dataclass
class Args:
    """Arguments.

    Attributes:
        task: name of the task.
        model: directory of the multi-exit model.
        recording: what it recorded.
        data: directory of the text.
        texts: about how many dev texts to time; batches are taken evenly from all lengths.
        seconds: to time each batch size for, though at least 3 rounds.
    """

    task: tyro.conf.Positional[str]
    model: tyro.conf.Positional[Path]
    recording: tyro.conf.Positional[Path]
    data: tyro.conf.Positional[Path]
    texts: int = 256
    seconds: float = 60.0


def main(args: Args) -> None:
    """Measures and writes `results/runtime_onnx.json`."""
    text = load_splits(get_task(args.task), str(args.data))["dev"]
    model = load_model(args.model).eval()
    encoded = EncodedText(text, load_tokenizer(str(args.model)), model.config.max_tokens)
    dev = open_split(args.recording, "dev")
    policies = confidence_at_speeds(args.recording)
    # Of each, early exit at every threshold, and full depth.
    numbers: dict[str, tuple[list[OnnxRuntime], Callable[[Inputs], Any]]] = {}
    with TemporaryDirectory() as directory:
        for name, int8 in (("float32", False), ("int8", True)):
            export(model, Path(directory, name), int8=int8)
            export_full_depth(model, Path(directory, f"{name}.onnx"), int8=int8)
            early = [OnnxRuntime(Path(directory, name), policy) for policy in policies]
            numbers[name] = early, full_depth(Path(directory, f"{name}.onnx"))
    torch_runtimes = [EarlyExitRuntime(model, policy) for policy in policies]
    results = {
        "task": args.task,
        "backbone": dev.header.backbone,
        "onnxruntime": version("onnxruntime"),
        "layers": model.num_layers,
        "dev_texts": len(encoded),
        "mean_tokens": float(encoded.lengths.mean()),
        "trace": dev.fingerprint,
        "wanted_per_layer_speedup": WANTED,
        "agreement_on_dev": agreement(torch_runtimes, numbers, encoded),
        "batch_sizes": [
            timed(some_batches(encoded, size, args.texts), size, numbers, model.num_layers, args)
            for size in BATCH_SIZES
        ],
    }
    write("runtime_onnx", results)


def full_depth(path: Path) -> Callable[[Inputs], Any]:
    """What gives the predictions of one graph, with the settings of `OnnxRuntime`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(inputs: Inputs) -> Any:
        (logits,) = session.run(None, {name: inputs[name].numpy() for name in names})
        return logits.argmax(axis=1)

    return run


def agreement(
    torch_runtimes: list[EarlyExitRuntime],
    numbers: dict[str, Any],
    text: EncodedText,
) -> list[dict[str, Any]]:
    """How many of all dev texts leave where, and with what, PyTorch in float32 says."""
    batches = some_batches(text, 32, len(text) + 32)
    labels = text.labels.numpy()[np.concatenate([rows for rows, _ in batches])]
    assert len(labels) == len(text)

    def whole(run: Callable[[Inputs], Exits]) -> Exits:
        parts = [run(inputs) for _, inputs in batches]
        fields = zip(*((p.prediction, p.logits, p.exit_layer) for p in parts), strict=True)
        return Exits(*(np.concatenate(field) for field in fields))

    entries = []
    for place, runtime in enumerate(torch_runtimes):
        expected = whole(runtime)
        for name, (early, full) in numbers.items():
            found = whole(early[place])
            at_full = np.concatenate([full(inputs) for _, inputs in batches])
            entries.append(
                {
                    "numbers": name,
                    "threshold": runtime.policy.threshold,
                    "same_prediction": float((found.prediction == expected.prediction).mean()),
                    "same_exit_layer": float((found.exit_layer == expected.exit_layer).mean()),
                    "accuracy": float((found.prediction == labels).mean()),
                    "accuracy_in_pytorch": float((expected.prediction == labels).mean()),
                    "accuracy_at_full_depth": float((at_full == labels).mean()),
                }
            )
            print(entries[-1], flush=True)
    return entries


def timed(
    batches: Batches, size: int, numbers: dict[str, Any], num_layers: int, args: Args
) -> dict[str, Any]:
    """All sides on batches of one size."""
    rows = sum(len(rows) for rows, _ in batches)
    lengths = np.concatenate([inputs["attention_mask"].sum(dim=1) for _, inputs in batches])
    calls = [call for early, full in numbers.values() for call in (full, *early)]
    seconds, rounds = in_turn(calls, batches, args.seconds)
    totals = iter(seconds)
    entries = []
    for name, (early, _) in numbers.items():
        full = next(totals)
        for wanted, runtime in zip(LAYER_SPEEDUPS, early, strict=True):
            early_exit = next(totals)
            exit_layer = np.concatenate([runtime(inputs).exit_layer for _, inputs in batches])
            every_token = lengths.sum() * num_layers
            layer_speedup = num_layers / exit_layer.mean()
            wall, cpu = full / early_exit
            entries.append(
                {
                    "numbers": name,
                    "layer_speedup_on_calibration": wanted,
                    "layer_speedup": layer_speedup,
                    "token_layer_speedup": every_token / (lengths * exit_layer).sum(),
                    "wall_clock_speedup": wall,
                    "cpu_time_speedup": cpu,
                    "wall_clock_speedup_per_layer_speedup": wall / layer_speedup,
                    "cpu_time_speedup_per_layer_speedup": cpu / layer_speedup,
                    "milliseconds_a_text": 1e3 * early_exit[0] / rows,
                    "milliseconds_a_text_at_full_depth": 1e3 * full[0] / rows,
                }
            )
            print(
                f"batch {size:3d} {name:8} layers {layer_speedup:.2f}x wall {wall:.2f}x cpu "
                f"{cpu:.2f}x: {wall / layer_speedup:.2f}, {cpu / layer_speedup:.2f} (wanted "
                f"{WANTED}), full depth {1e3 * full[0] / rows:.2f} ms a text",
                flush=True,
            )
    return {"batch_size": size, "texts": rows, "rounds": rounds, "sides": entries}


if __name__ == "__main__":
    main(tyro.cli(Args))
