"""Seconds of a decoding step with early exits, against the faster way of running all layers.

Exits are drawn for each token and row, with the same chance at each exit, and a linear map of the
state is paid for at each of them. Prompts are one token long, so that there is no prefill. One
thread; CPU time of the process and wall time; settings take turns, and medians are reported.

    OMP_NUM_THREADS=1 python -m benchmarks.generation_decode [SMOLLM2_DIR]
"""

import copy
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Self

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.common import write
from cee_gym.exits.lm_head import MultiExitDecoder, load_causal_lm
from cee_gym.generation import EarlyExitDecoding
from cee_gym.generation.text_generation import never
from cee_gym.observation import Layout, Sizes, layout_of
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.score import Floats, LayerScores, Score, register_policy

TURNS, NEW = 5, 48
BATCHES, SPEEDUPS = (1, 16), (1.5, 2.0)


@register_policy("drawn")
class Drawn(Score):
    """A linear map of the state, and a draw that decides whatever it says."""

    reads = ("hidden",)

    def __init__(self, chance: float, width: int) -> None:
        self.chance = chance
        self.linear = torch.nn.Linear(width, 1)
        self.rng = np.random.default_rng(0)

    def scores(self, observations: Floats, layout: Layout) -> Floats:
        """Not used: a decoder asks the decider."""
        raise NotImplementedError

    def decider(
        self, layout: Layout, threshold: float, device: torch.device
    ) -> tuple[tuple[str, ...], LayerScores, float]:
        """Above 1 - chance as often as chance says."""

        def scores(hidden: torch.Tensor, layer: int) -> torch.Tensor:
            drawn = torch.from_numpy(self.rng.random(len(hidden), dtype=np.float32))
            return drawn + 0 * self.linear(hidden)[:, 0]

        return self.reads, scores, 1 - self.chance

    def settings(self) -> dict[str, Any]:
        """The chance."""
        return {"chance": self.chance}

    @classmethod
    def restore(
        cls,
        settings: Mapping[str, Any],
        tensors: dict[str, torch.Tensor],
        layout: Layout,
        alpha_range: tuple[float, float],
    ) -> Self:
        """Is not saved."""
        raise NotImplementedError


def chance_at(depths: Sequence[int], speedup: float) -> float:
    """Leaving each exit with this chance, tokens have this layer speed-up on average."""
    depths = np.asarray(depths)

    def mean_depth(chance: float) -> float:
        stay = (1 - chance) ** np.arange(len(depths))
        share = stay * np.where(np.arange(len(depths)) < len(depths) - 1, chance, 1.0)
        return float(share @ depths)

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_depth(middle) > depths[-1] / speedup else (low, middle)
    return low


def drawn(decoder: MultiExitDecoder, speedup: float) -> ExitPolicy:
    """A policy whose layer speed-up is this one on average."""
    sizes = Sizes(decoder.num_layers, decoder.width, decoder.num_labels)
    chance = chance_at(decoder.depths, speedup)
    return ExitPolicy(Drawn(chance, decoder.width), layout_of(("hidden",), sizes))


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(
    name: str,
    model: PreTrainedModel,
    depths: tuple[int, ...] | None,
    batches: tuple[int, ...] = BATCHES,
) -> dict[str, Any]:
    """One model at some batch sizes and all speed-ups."""
    decoder = MultiExitDecoder(model.eval(), depths, adapter_rank=16)
    out: dict[str, Any] = {"layers": decoder.depths[-1], "exits": list(decoder.depths)}
    for batch in batches:
        ids = torch.randint(3, 1000, (batch, 1), generator=torch.Generator().manual_seed(0))
        given: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": NEW,
            "min_new_tokens": NEW,
            "do_sample": False,
            "pad_token_id": 0,
        }
        decodings = {
            "own full depth": EarlyExitDecoding(never(decoder)),
            **{
                f"{cache} at {speedup}": EarlyExitDecoding(drawn(decoder, speedup), cache=cache)
                for speedup in SPEEDUPS
                for cache in ("copy", "recompute")
            },
        }
        runs: dict[str, Callable[[], Any]] = {"generate": lambda g=given: decoder.generate(**g)}
        for label, decoding in decodings.items():
            runs[label] = lambda d=decoding, g=given: decoder.generate(**g, custom_generate=d)
        for run in runs.values():
            run()
        seconds: dict[str, list[tuple[float, float]]] = {label: [] for label in runs}
        work: dict[str, list[Any]] = {label: [] for label in decodings}
        for _ in range(TURNS):
            for label, run in runs.items():
                seconds[label].append(timed(run))
                if label in decodings:
                    work[label].append(decodings[label].exits)
        of: dict[str, Any] = {}
        for label, times in seconds.items():
            cpu, wall = (1000 * median(t) / NEW for t in zip(*times, strict=True))
            of[label] = {"cpu_ms_a_step": cpu, "wall_ms_a_step": wall}
        beside = economized(model, batch, given)
        if beside is not None:
            of["economize"] = beside
        full = min(of["generate"]["cpu_ms_a_step"], of["own full depth"]["cpu_ms_a_step"])
        wall = min(of["generate"]["wall_ms_a_step"], of["own full depth"]["wall_ms_a_step"])
        curve = rows_curve(decoder) if batch > 1 else None
        if beside is not None:
            for row in beside.values():
                row["wall_clock_speedup_cpu"] = full / row["cpu_ms_a_step"]
                row["wall_clock_speedup"] = wall / row["wall_ms_a_step"]
                row["ratio_cpu"] = row["wall_clock_speedup_cpu"] / row["layer_speedup"]
                row["ratio"] = row["wall_clock_speedup"] / row["layer_speedup"]
                print(name, batch, "economize", {k: round(v, 3) for k, v in row.items()})
        for label, exits in work.items():
            if label == "own full depth":
                continue
            speedup = decoder.depths[-1] / np.mean([e.mean_exit_layer for e in exits])
            row = of[label]
            row["layer_speedup"] = float(speedup)
            row["layers_run_a_token"] = float(np.mean([e.layers_run / e.tokens for e in exits]))
            row["heads_a_token"] = float(np.mean([e.heads_evaluated / e.tokens for e in exits]))
            row["fills_a_token"] = float(np.mean([e.fills / e.tokens for e in exits]))
            row["wall_clock_speedup_cpu"] = full / row["cpu_ms_a_step"]
            row["wall_clock_speedup"] = wall / row["wall_ms_a_step"]
            row["ratio_cpu"] = row["wall_clock_speedup_cpu"] / speedup
            row["ratio"] = row["wall_clock_speedup"] / speedup
            if curve is not None and label.startswith("copy"):
                row["ceiling"] = ceiling(curve, exits, decoder.depths[-1], batch)
                row["of_ceiling_cpu"] = row["wall_clock_speedup_cpu"] / row["ceiling"]
            print(name, batch, label, {k: round(v, 3) for k, v in row.items()}, flush=True)
        out[f"batch {batch}"] = {**of, "layer_ms_by_rows": curve}
    return out


def economized(
    model: PreTrainedModel, batch: int, given: Mapping[str, Any]
) -> dict[str, dict[str, float]] | None:
    """CALM of the package `economize`, exits drawn after any layer; None where it is not installed.

    What it runs is counted in one run, by hooks on the layers' MLPs and not by its own meter.
    """
    try:
        import economize
        from economize.techniques.dynamic_depth import calm
    except ImportError:
        return None
    layers = model.get_decoder().layers
    if "drawn" not in calm.CONFIDENCE_MEASURES:

        @calm.CONFIDENCE_MEASURES.register("drawn")
        class DrawnConfidence(calm.ClassifierConfidence):  # type: ignore[misc]
            """Its own linear map of the state, and a draw that decides whatever it says."""

            rng = np.random.default_rng(0)

            def __call__(self, index: int, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
                of_map = super().__call__(index, x, out)
                drawn = self.rng.random(of_map.shape, dtype=np.float32)
                return torch.from_numpy(drawn) + 0 * of_map

    found = {}
    for speedup in SPEEDUPS:
        chance = chance_at(range(1, len(layers) + 1), speedup)
        config = calm.CalmConfig(confidence="drawn", threshold=1 - chance)
        applied = economize.apply(copy.deepcopy(model), config)
        ran = 0

        def count(_: Any, args: Any, kwargs: Any) -> None:
            nonlocal ran
            given_to = args[0] if args else next(iter(kwargs.values()))
            ran += given_to.shape[:-1].numel()

        wanted = type(layers[0].mlp)
        handles = [
            module.register_forward_pre_hook(count, with_kwargs=True)
            for module in applied.modules()
            if isinstance(module, wanted)
        ]
        applied.generate(**given)
        for handle in handles:
            handle.remove()
        times = [timed(lambda a=applied: a.generate(**given)) for _ in range(TURNS)]  # type: ignore[misc]
        cpu, wall = (1000 * median(t) / NEW for t in zip(*times, strict=True))
        found[f"copy at {speedup}"] = {
            "cpu_ms_a_step": cpu,
            "wall_ms_a_step": wall,
            "layer_speedup": speedup,
            "layers_run_a_token": ran / (batch * NEW),
        }
    return found


def rows_curve(decoder: MultiExitDecoder) -> dict[int, float]:
    """CPU milliseconds of one decoding step at full depth, by rows."""
    found = {}
    given: dict[str, Any] = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
    for rows in (1, 2, 4, 6, 8, 12, 16):
        ids = torch.randint(3, 1000, (rows, 1))
        decoding = EarlyExitDecoding(never(decoder))

        def run(ids: torch.Tensor = ids, decoding: EarlyExitDecoding = decoding) -> None:
            decoder.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pad_token_id=0,
                custom_generate=decoding,
                **given,
            )

        run()
        found[rows] = 1000 * median(timed(run)[0] for _ in range(5)) / 24
    return found


def ceiling(curve: dict[int, float], exits: list[Any], layers: int, batch: int) -> float:
    """The speed-up that the measured cost by rows allows, if nothing else cost anything."""
    rows = np.array(list(curve))
    cost = np.array(list(curve.values()))
    steps = []
    for one in exits:
        running = (one.exit_layer[:, :, None] >= np.arange(1, layers + 1)).sum(0)  # [new, layers]
        taken = np.where(running > 0, np.interp(running, rows, cost), 0.0)
        steps.append(taken.sum(1).mean() / layers)
    return float(np.interp(batch, rows, cost) / np.mean(steps))


def random_llama(heads: int, grouped: int) -> PreTrainedModel:
    """12 layers, 512 wide."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=12,
        num_attention_heads=heads,
        num_key_value_heads=grouped,
        max_position_embeddings=512,
        eos_token_id=None,
        bos_token_id=1,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    """Measures and writes the results."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "load": os.getloadavg()[0],
        "new_tokens": NEW,
        "turns": TURNS,
        "12x512, 8 heads, 2 of keys": measure("GQA", random_llama(8, 2), tuple(range(1, 13))),
        "12x512, 8 heads": measure("MHA", random_llama(8, 8), tuple(range(1, 13))),
    }
    smol = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CEE_GYM_SMOLLM2")
    if smol is None:
        print("SmolLM2 is left out: give its directory or .gguf file")
    else:
        results["SmolLM2-135M"] = measure("SmolLM2", load_causal_lm(smol), None)
    write("generation_decode", results)


if __name__ == "__main__":
    main()
