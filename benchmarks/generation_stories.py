"""Learned exits of tokens against CALM's rules, on traces and while the model runs.

Adapters are trained at full depth, then model and adapters under state copying. Rules and learned
policies share them. Speeds are chosen on calibration, by the trace; reported are 200 stories of
dev, by the trace and live, with intervals over stories.

    python -m benchmarks.generation_stories [WORK]
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import write
from cee_gym.agents.registry import make_agent
from cee_gym.backbones.sequences import TokenSequences
from cee_gym.envs import EarlyExitEnv
from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.generation.live import LiveTexts, run_live
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.speeds import Speed, measure_speeds
from cee_gym.problem import Problem
from cee_gym.tasks.prompted import get_prompted
from cee_gym.traces.recordings import open_split, shipped_backbone
from cee_gym.training import token_phases
from cee_gym.training.config import AlternationConfig, FitConfig, RecordConfig, TokenConfig
from cee_gym.training.token_setup import TokenSetup

ID = "EarlyExit-TinyLLaMA-Stories"
BUDGETS = (0.25, 0.5)
ALPHAS = (0.05, 0.1, 0.15, 0.2)
HEADS = ("hidden", "layer", "confidence", "margin", "entropy")
# Name -> agent, what it observes, and whether it looks for the best price of each budget.
POLICIES: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "softmax gap (CALM)": ("margin", ("margin",), False),
    "confidence": ("confidence", ("confidence",), False),
    "saturation (CALM)": ("saturation", ("hidden",), False),
    "classifier (CALM): learning-to-exit": ("learning-to-exit", ("hidden",), False),
    "longstaff-schwartz": ("longstaff-schwartz", HEADS, True),
    "policy-improvement": ("policy-improvement", HEADS, True),
    "longstaff-schwartz, no LM head": ("longstaff-schwartz", ("hidden", "layer"), True),
}


def learned(agent: str, observe: tuple[str, ...], recording: Path, alpha: float) -> ExitPolicy:
    """What an agent learns on the train split."""
    env = EarlyExitEnv(trace=str(recording), split="train", observe=observe, alpha=alpha)
    return make_agent(agent).learn(env, 0).policy


def at_budget(
    name: str, recording: Path, budget: float
) -> tuple[ExitPolicy, Problem, float | None]:
    """A policy that saves so much on calibration, at the price that serves it best there."""
    agent, observe, prices = POLICIES[name]
    found = []
    for alpha in ALPHAS if prices else (0.1,):
        policy = learned(agent, observe, recording, alpha)
        calibration = Problem(open_split(recording, "calibration"), observe=observe)
        speeds = measure_speeds(policy, calibration)
        held = Speed(saved_layers=budget).choose(policy, speeds)
        lost = next(p.points_lost for p in speeds.points if p.threshold == held.threshold)
        found.append((lost, alpha, held))
    _, alpha, held = min(found, key=lambda one: one[0])
    dev = Problem(open_split(recording, "dev"), observe=observe)
    return held, dev, alpha if prices else None


def interval(values: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> list[float]:
    """The 95 % interval of a ratio of sums, by bootstrap over stories."""
    draws = rng.integers(0, len(values), (2000, len(values)))
    return np.quantile(values[draws].sum(1) / counts[draws].sum(1), [0.025, 0.975]).tolist()


def stories(work: Path, seed: int) -> dict[str, Any]:
    """All of it, from one seed."""
    backbone = shipped_backbone(ID)
    assert backbone is not None
    setup = TokenSetup.load(
        get_prompted("stories"), str(backbone), None, RecordConfig(seed=seed), TokenConfig()
    )
    work.mkdir(parents=True, exist_ok=True)
    token_phases.warm_up(setup, work / "adapters")
    token_phases.record(setup, work / "adapters", work / "before")
    policy, _, _ = at_budget("longstaff-schwartz", work / "before", 0.4)
    config = AlternationConfig(
        rounds=1, backbone_phase=FitConfig(epochs=4, batch_size=8, learning_rate=1e-3)
    )
    token_phases.backbone_phase(setup, work / "adapters", work / "trained", policy, config, 1)
    token_phases.record(setup, work / "trained", work / "after")
    results: dict[str, Any] = {}
    for stage, models, recording in (
        ("adapters only", work / "adapters", work / "before"),
        ("trained under copying", work / "trained", work / "after"),
    ):
        results[stage] = compare(models, recording)
        print(stage, json.dumps(results[stage], indent=1), flush=True)
    return results


def compare(models: Path, recording: Path) -> dict[str, Any]:
    """Every policy at every budget, by the trace and live."""
    decoder = MultiExitDecoder.load(models / "deployed").eval()
    text = TokenSequences.load(recording / "tokens-dev.safetensors")
    dev = open_split(recording, "dev")
    assert dev.sequence is not None
    counts = text.answer_tokens
    full = run_live(decoder, None, text, dev.labels)
    out: dict[str, Any] = {
        "stories": len(text),
        "tokens": int(counts.sum()),
        "agreement_by_layer": dev.correct.mean(axis=0).tolist(),
        "full_depth_with_original": float(full.right.sum() / counts.sum()),
        "budgets": {},
    }
    for budget in BUDGETS:
        of: dict[str, tuple[np.ndarray, LiveTexts]] = {}
        rows: dict[str, Any] = {}
        for name in POLICIES:
            held, problem, alpha = at_budget(name, recording, budget)
            exits = held.exit_layers(held.scores_on(problem)) - 1
            right = problem.correct[np.arange(len(exits)), exits]
            traced = np.bincount(dev.sequence, right, len(text))
            live = run_live(decoder, replace(held, chosen_on=""), text, dev.labels)
            of[name] = traced, live
            total = counts.sum()
            rows[name] = {
                "alpha": alpha,
                "trace": {
                    "agreement": float(traced.sum() / total),
                    "saved_layers": float(1 - (exits.mean() + 1) / dev.num_layers),
                },
                "live": {
                    "agreement": float(live.right.sum() / total),
                    "saved_layers": float(1 - live.depth.sum() / total / decoder.depths[-1]),
                    "perplexity": float(np.exp(live.loss.sum() / total)),
                },
                "copy_gap": float((traced.sum() - live.right.sum()) / total),
            }
        gap_traced, gap_live = of["softmax gap (CALM)"]
        for name, (traced, live) in of.items():
            rng = np.random.default_rng(0)
            for kind, own, other in (
                ("trace", traced, gap_traced),
                ("live", live.right, gap_live.right),
            ):
                difference = own - other
                rows[name][kind]["minus_gap"] = float(difference.sum() / counts.sum())
                rows[name][kind]["interval"] = interval(difference, counts, rng)
        out["budgets"][str(budget)] = rows
    return out


def main() -> None:
    """Runs three seeds and writes the results."""
    torch.set_num_threads(1)
    work = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/generation_stories")
    seeds = {str(seed): stories(work / f"seed-{seed}", seed) for seed in range(3)}
    write("generation_stories", {"seeds": seeds})


if __name__ == "__main__":
    main()
