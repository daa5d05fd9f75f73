"""Draws `docs/generation.png`: learned exits of tokens against CALM's gap, and a story by depth.

    python -m benchmarks.generation_pictures WORK/seed-0

WORK is what `generation_stories.py` worked in.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.generation_stories import at_budget
from cee_gym.backbones.sequences import TokenSequences
from cee_gym.evaluation.curve import accuracy_speed_curve
from cee_gym.exits.lm_head import MultiExitDecoder, load_lm_tokenizer
from cee_gym.generation import EarlyExitDecoding
from cee_gym.generation.live import measure_live

NAMES = {"longstaff-schwartz": "tab:blue", "softmax gap (CALM)": "tab:gray"}
SAVED = (0.1, 0.2, 0.3, 0.4, 0.5)


def curves(axes: Any, work: Path, decoder: MultiExitDecoder) -> None:
    """Agreement against saved layers, by the trace and live."""
    recording = work / "after"
    text = TokenSequences.load(recording / "tokens-dev.safetensors")
    for name, colour in NAMES.items():
        points = []
        for saved in SAVED:
            held, problem, _ = at_budget(name, recording, saved)
            points.append(measure_live(decoder, held, text, problem.trace.labels))
            if saved == 0.3:
                curve = accuracy_speed_curve(problem.trace, held.scores_on(problem))
        axes.plot(
            [100 * point.saved_layers for point in curve],
            [point.accuracy for point in curve],
            color=colour,
            linestyle=":",
            label=f"{name}, by the trace",
        )
        axes.plot(
            [100 * point["saved_layers"] for point in points],
            [point["agreement"] for point in points],
            "o-",
            color=colour,
            label=f"{name}, live",
        )
    axes.set(
        xlabel="saved layers (%)",
        ylabel="agreement with the full model",
        xlim=(0, 60),
        ylim=(0.5, 1.0),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")


def story(axes: Any, figure: Figure, work: Path, decoder: MultiExitDecoder) -> None:
    """A story that the model writes, every token on the colour of its depth."""
    held, _, _ = at_budget("longstaff-schwartz", work / "after", 0.3)
    tokenizer: Any = load_lm_tokenizer(work / "trained" / "deployed")
    decoding = EarlyExitDecoding(held.at(threshold=held.threshold))
    start = torch.tensor([[1]])
    out = decoder.generate(
        input_ids=start,
        attention_mask=torch.ones_like(start),
        max_new_tokens=150,
        do_sample=False,
        pad_token_id=2,
        custom_generate=decoding,
    )
    assert decoding.exits is not None
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    x, y, width, height = 0.0, 0.97, 0.0128, 0.062
    shades = ["#1a9850", "#91cf60", "#fee08b", "#fc8d59", "#d73027"]
    for id, layer in zip(out[0, 1:].tolist(), decoding.exits.exit_layer[0].tolist(), strict=True):
        token = tokenizer.convert_ids_to_tokens(id).replace("▁", " ")
        if token == "<0x0A>":
            x, y = 0.0, y - height
            continue
        if x + width * len(token) > 1:
            x, y, token = 0.0, y - height, token.lstrip()
        axes.text(
            x,
            y,
            token,
            family="monospace",
            fontsize=9,
            va="top",
            bbox={"facecolor": shades[layer - 1], "edgecolor": "none", "pad": 0.6, "alpha": 0.75},
        )
        x += width * len(token)
    mean = decoding.exits.mean_exit_layer
    axes.set_title(f"read at layer 1 (green) to 5 (red); mean {mean:.2f}", fontsize=10)


def main() -> None:
    """Draws."""
    torch.set_num_threads(1)
    work = Path(sys.argv[1])
    decoder = MultiExitDecoder.load(work / "trained" / "deployed").eval()
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    curves(left, work, decoder)
    story(right, figure, work, decoder)
    figure.savefig(Path(__file__).parents[1] / "docs" / "generation.png", dpi=110)


if __name__ == "__main__":
    main()
