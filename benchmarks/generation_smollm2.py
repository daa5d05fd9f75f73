"""SmolLM2-135M on instructions: learned exits against CALM's gap, by the layer and by the clock.

Texts of dev are run live, under state copying, and a few prompts are answered for real, with the
time they take. A rule that reads an LM head at each exit pays for it.

    OMP_NUM_THREADS=1 python -m benchmarks.generation_smollm2 ENCODER NAME=RUN ...

ENCODER is a local directory for BERTScore. A RUN is one of
`cee-gym train EarlyExit-LLaMA-Dolly --backbone SMOLLM2 ...`, and NAME what the results call it;
results of other names stay as they are.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, write
from benchmarks.generation_stories import learned
from cee_gym.backbones.sequences import TokenSequences
from cee_gym.evaluation.text import bert_score, rouge
from cee_gym.exits.lm_head import MultiExitDecoder, load_lm_tokenizer
from cee_gym.generation import EarlyExitDecoding
from cee_gym.generation.live import measure_live
from cee_gym.generation.text_generation import never
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.speeds import Speed, measure_speeds
from cee_gym.problem import Problem
from cee_gym.runs import Run
from cee_gym.traces.recordings import open_split

SAVED = (0.1, 0.2, 0.3)
PROMPTS, NEW, TEXTS = 24, 32, 48
AGENTS = {
    "softmax gap (CALM)": ("margin", ("margin",)),
    "longstaff-schwartz, no LM head": ("longstaff-schwartz", ("hidden", "layer")),
    "longstaff-schwartz, with LM heads": (
        "longstaff-schwartz",
        ("layer", "confidence", "margin", "entropy"),
    ),
}


def answers(
    decoder: MultiExitDecoder, tokenizer: Any, text: TokenSequences, policy: ExitPolicy
) -> tuple[list[str], dict[str, float]]:
    """Texts, and what a token took."""
    decoding, said = EarlyExitDecoding(policy), []
    cpu = wall = tokens = heads = layers = 0.0
    for row in range(PROMPTS):
        ids = torch.from_numpy(text.of(row)[: text.prompts[row]])[None]
        start, begun = time.process_time(), time.perf_counter()
        out = decoder.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            custom_generate=decoding,
        )
        cpu, wall = cpu + time.process_time() - start, wall + time.perf_counter() - begun
        assert decoding.exits is not None
        tokens += decoding.exits.tokens
        heads += decoding.exits.heads_evaluated
        layers += decoding.exits.layers_run
        said.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return said, {
        "tokens_a_cpu_second": tokens / cpu,
        "tokens_a_second": tokens / wall,
        "heads_a_token": heads / tokens,
        "layers_a_token": layers / tokens,
    }


def measure(directory: Path, encoder: str) -> dict[str, Any]:
    """One run."""
    run = Run.open(directory)
    weights, recording = run.weights, run.recording
    decoder = MultiExitDecoder.load(weights).eval()
    tokenizer = load_lm_tokenizer(weights)
    everything = TokenSequences.load(recording / "tokens-dev.safetensors")
    text = everything.take(np.arange(TEXTS))  # their tokens are the first of the trace
    fitted = TokenSequences.load(recording / "tokens-train.safetensors")
    dev = open_split(recording, "dev")
    gold = [
        tokenizer.decode(text.of(row)[text.prompts[row] :], skip_special_tokens=True)
        for row in range(PROMPTS)
    ]
    full_said, full_took = answers(decoder, tokenizer, text, never(decoder))
    rows: dict[str, Any] = {
        "full depth": {
            "live": measure_live(decoder, None, text, dev.labels),
            "rouge_with_gold": rouge(full_said, gold),
            **full_took,
        }
    }
    for saved in SAVED:
        for name, (agent, observe) in AGENTS.items():
            found = []
            for alpha in (0.003, 0.01) if agent != "margin" else (0.01,):
                policy = learned(agent, observe, recording, alpha)
                calibration = Problem(open_split(recording, "calibration"), observe=observe)
                speeds = measure_speeds(policy, calibration)
                held = Speed(saved_layers=saved).choose(policy, speeds)
                lost = next(p.points_lost for p in speeds.points if p.threshold == held.threshold)
                found.append((lost, held))
            held = min(found, key=lambda one: one[0])[1]
            problem = Problem(dev, observe=observe)
            exits = held.exit_layers(held.scores_on(problem)) - 1
            said, took = answers(decoder, tokenizer, text, held)
            rows[f"{name} at {saved:.0%}"] = {
                "trace": {
                    "agreement": float(problem.correct[np.arange(len(exits)), exits].mean()),
                    "saved_layers": float(1 - dev.depths[exits].mean() / dev.depths[-1]),
                },
                "live": measure_live(decoder, held, text, dev.labels),
                "rouge_with_gold": rouge(said, gold),
                "rouge_with_full_depth": rouge(said, full_said),
                "bert_score_with_full_depth": bert_score(said, full_said, encoder),
                **took,
            }
            print(f"{name} at {saved:.0%}", rows[f"{name} at {saved:.0%}"], flush=True)
    described = json.loads((recording / "recording.json").read_text())
    return {
        "exits": list(decoder.depths),
        "made": described["made"],
        "tokens": described["config"]["tokens"],
        "recorded_under": described["under"],
        "policy_tokens": int(fitted.answer_tokens.sum()),
        "dev_tokens": len(dev),
        "live_texts": len(text),
        "prompts": PROMPTS,
        "agreement_by_exit": dev.correct.mean(axis=0).tolist(),
        "policies": rows,
    }


def main() -> None:
    """Measures and writes the results."""
    torch.set_num_threads(1)
    kept = RESULTS / "generation_smollm2.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for given in sys.argv[2:]:
        name, _, run = given.partition("=")
        results[name] = measure(Path(run), sys.argv[1])
        write("generation_smollm2", results)


if __name__ == "__main__":
    main()
