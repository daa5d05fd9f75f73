"""What a trace says of a policy under state copying, and what the running model comes to.

A trace at full depth flatters, since there nobody has left before. One that is recorded under the
policy shows every token what it would see.

    python -m benchmarks.generation_copy_gap WORK

WORK is what `generation_stories.py` worked in.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import write
from benchmarks.generation_stories import BUDGETS, at_budget
from cee_gym.backbones.sequences import TokenSequences
from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.generation.decisions import policy_leave
from cee_gym.generation.live import run_live
from cee_gym.policies.base import ExitPolicy
from cee_gym.problem import Problem
from cee_gym.traces.tokens import collect_tokens
from cee_gym.traces.trace import Trace

NAMES = ("softmax gap (CALM)", "longstaff-schwartz")


def agreement(policy: ExitPolicy, trace: Trace, labels: np.ndarray) -> float:
    """Of the policy's answers on a trace."""
    problem = Problem(trace, observe=tuple(policy.layout))
    exits = policy.exit_layers(policy.scores_on(problem)) - 1
    return float((trace.prediction[np.arange(len(exits)), exits] == labels).mean())


def main() -> None:
    """Measures and writes the results."""
    torch.set_num_threads(1)
    work, results = Path(sys.argv[1]), dict[str, Any]()
    for seed in sorted(path.name for path in work.glob("seed-*")):
        here = work / seed
        decoder = MultiExitDecoder.load(here / "trained" / "deployed").eval()
        text = TokenSequences.load(here / "after" / "tokens-dev.safetensors")
        for budget in BUDGETS:
            for name in NAMES:
                policy, problem, _ = at_budget(name, here / "after", budget)
                dev = problem.trace
                under = collect_tokens(
                    decoder,
                    text,
                    [f"dev/{row}" for row in range(len(text))],
                    here / f"under-{name.split()[0]}-{budget}",
                    {"task": "stories", "split": "dev", "backbone": "stories260K"},
                    leave=policy_leave(decoder, policy),
                )
                live = run_live(decoder, policy, text, dev.labels)
                row = {
                    "trace_at_full_depth": agreement(policy, dev, dev.labels),
                    "trace_under_the_policy": agreement(policy, under, dev.labels),
                    "live": float(live.right.sum() / live.tokens.sum()),
                }
                results[f"{seed}, {name} at {budget:.0%}"] = row
                print(seed, name, budget, row, flush=True)
    write("generation_copy_gap", {"stories": results})


if __name__ == "__main__":
    main()
