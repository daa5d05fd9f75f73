"""How often a guaranteed threshold breaks its promise, against the delta it was asked for.

    python benchmarks/guarantee.py --recording DIR

The promise is about the draw of the calibration rows, so they are drawn many times: with
replacement from a population of rows whose true rate of losses is therefore known. Populations:

- made up, to be hard: `crossing`, the rate grows through epsilon as the threshold falls; `cliff`,
  all leave at one threshold and lose just more often than epsilon; `luck`, many ranges of
  thresholds, in each of which other rows lose, always a little more often than epsilon.
- the calibration rows and the dev rows of a recording of real text, with the scores of a
  confidence threshold and of a learned policy.

Two other rules face the same draws: `rate`, the lowest threshold whose rate on the calibration rows
is at most epsilon; and `search`, the lowest threshold that passes its test, whether or not those
before it do. The split the user sees is measured too: calibration rows and all others of the
population, without replacement. There the rate of the others is an estimate with an error of its
own, and may be above epsilon more often than delta.

Last, each promise is made once, from all calibration rows, and checked on dev.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro
from common import write
from scipy.sparse import csr_array, vstack
from scipy.stats import binom

from cee_gym.agents import ExpectedReturn, make_agent
from cee_gym.agents.base import Agent
from cee_gym.envs import EarlyExitEnv
from cee_gym.evaluation.guarantee import (
    GRID,
    Risk,
    conformal_threshold,
    count_losses,
    fixed_sequence,
    guaranteed_threshold,
    loss_table,
    losses_at,
    rows_needed,
)
from cee_gym.returns import first_exit
from cee_gym.traces.trace import Trace

DELTAS = (0.1, 0.05)
EPSILONS: dict[Risk, tuple[float, ...]] = {
    "disagreement": (0.01, 0.02, 0.05),
    "harm": (0.005, 0.01, 0.02),
}
# Calibration rows, by the split they are drawn from.
SIZES = {"calibration": (500, 1000, 2000), "dev": (200, 400)}
Scores = dict[str, dict[str, npt.NDArray[np.float32]]]  # by agent and split
ALPHA, TIMESTEPS = 0.035, 300_000
MADE_UP_ROWS = 10_000
DRAWS_AT_A_TIME = 250


@dataclass
class Args:
    """Arguments.

    Attributes:
        recording: of real text, with calibration rows and dev rows.
        draws: of calibration rows, from each population.
        conformal_draws: the same for conformal thresholds.
        seed: of the draws and of the learned policy.
    """

    recording: Path
    draws: int = 4000
    conformal_draws: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Population:
    """Rows to draw from.

    Attributes:
        changes: sparse `[N, G]`, by how much the number of lost rows changes with each row at each
            threshold of the grid, from the one before.
        rates: `[G]`, the share of rows that are lost.
        saved_layers: `[G]`.
    """

    changes: csr_array
    rates: npt.NDArray[np.float64]
    saved_layers: npt.NDArray[np.float64]

    @classmethod
    def of(cls, losses: npt.NDArray[np.bool_], scores: npt.NDArray[np.float32]) -> "Population":
        """From losses and scores `[N, L]`."""
        num_rows, num_layers = scores.shape
        changes = [
            csr_array(np.diff(count_losses(losses[[row]], scores[[row]]), prepend=0)[None])
            for row in range(num_rows)
        ]
        # Leaving at layer t saves the L - t behind it.
        saved = sum(
            count_losses(np.tile(np.arange(num_layers) == layer, (num_rows, 1)), scores)
            * (num_layers - layer - 1)
            for layer in range(num_layers - 1)
        )
        return cls(
            vstack(changes, format="csr", dtype=np.float32),
            count_losses(losses, scores) / num_rows,
            saved / (num_rows * num_layers),
        )

    def draw(self, rows: int, draws: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
        """The lost rows `[draws, G]` of calibration rows drawn with replacement."""
        share = np.full(self.changes.shape[0], 1 / self.changes.shape[0])
        return self._count(lambda size: rng.multinomial(rows, share, size), draws)

    def split(self, rows: int, draws: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
        """The same, drawn without replacement."""
        once = np.arange(self.changes.shape[0]) < rows
        return self._count(lambda size: rng.permuted(np.tile(once, (size, 1)), axis=1), draws)

    def _count(
        self, weights: Callable[[int], npt.NDArray[Any]], draws: int
    ) -> npt.NDArray[np.int32]:
        counts = np.empty((draws, len(GRID)), dtype=np.int32)
        for start in range(0, draws, DRAWS_AT_A_TIME):
            part = counts[start : start + DRAWS_AT_A_TIME]
            part[:] = np.cumsum(weights(len(part)).astype(np.float32) @ self.changes, axis=1)
        return counts


def made_up(epsilon: float, rng: np.random.Generator) -> dict[str, Population]:
    """Populations that make epsilon hard to keep."""
    n = MADE_UP_ROWS
    scores = rng.uniform(size=(n, 6)).astype(np.float32)
    crossing = rng.uniform(size=(n, 6)) > scores ** (2 * epsilon)
    crossing[:, -1] = False

    cliff = np.zeros((n, 2), dtype=bool)
    cliff[: round(n * epsilon) + 1, 0] = True

    ranges = int(1 / (1.15 * epsilon))
    edges = GRID[np.linspace(500, 6500, ranges + 1).astype(int)]
    piece = np.arange(n) % ranges
    lowest, last = np.full(n, edges[-1]), np.zeros(n)
    luck = np.stack([lowest, edges[piece + 1], edges[piece], last], axis=1).astype(np.float32)
    return {
        "crossing": Population.of(crossing, scores),
        "cliff": Population.of(cliff, np.full((n, 2), 0.5, dtype=np.float32)),
        "luck": Population.of(np.tile([True, False, True, False], (n, 1)), luck),
    }


def error(share: float, draws: int) -> float:
    """The binomial standard error of a share of draws."""
    return float(np.sqrt(share * (1 - share) / draws))


def violations(
    population: Population,
    rows: int,
    epsilon: float,
    drawn: npt.NDArray[np.int32],
    parted: npt.NDArray[np.int32] | None = None,
) -> list[dict[str, Any]]:
    """How often each rule chooses a threshold whose rate in the population is above epsilon.

    Args:
        population: the rows.
        rows: calibration rows in each draw.
        epsilon: what is promised.
        drawn: integers `[draws, G]`, the lost ones among them.
        parted: the same, drawn without replacement.
    """
    rates = population.rates
    lowest = len(GRID) - 1
    results: list[dict[str, Any]] = []
    for delta in DELTAS:
        if rows < rows_needed(epsilon, delta):
            results.append({"delta": delta, "refused": f"takes {rows_needed(epsilon, delta)} rows"})
            continue
        chosen = fixed_sequence(drawn[:, 1:], rows, epsilon=epsilon, delta=delta)
        passed = (binom.cdf(np.arange(rows + 1), rows, epsilon) <= delta)[drawn]
        rules = {"rate": drawn <= rows * epsilon, "search": passed}
        violated = float((rates[chosen] > epsilon).mean())
        results.append(
            {
                "delta": delta,
                "violations": violated,
                "standard_error": error(violated, len(drawn)),
                "at_most_delta_within_3_errors": violated <= delta + 3 * error(delta, len(drawn)),
                "mean_rate": float(rates[chosen].mean()),
                "saved_layers": float(population.saved_layers[chosen].mean()),
                "saved_layers_spread": float(population.saved_layers[chosen].std(ddof=1)),
                **{
                    f"violations_of_{name}": float(
                        (rates[lowest - good[:, ::-1].argmax(axis=1)] > epsilon).mean()
                    )
                    for name, good in rules.items()
                },
            }
        )
        if parted is not None:
            chosen = fixed_sequence(parted[:, 1:], rows, epsilon=epsilon, delta=delta)
            size = population.changes.shape[0]
            lost = np.take_along_axis(parted, chosen[:, None], axis=1)[:, 0]
            others = (np.round(rates[chosen] * size) - lost) / (size - rows)
            results[-1]["above_epsilon_on_the_rows_not_drawn"] = float((others > epsilon).mean())
    return results


def conformal(
    trace: Trace,
    scores: npt.NDArray[np.float32],
    rows: int,
    draws: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """The rate of disagreement in the population at conformal thresholds."""
    losses, results = loss_table(trace, "disagreement"), []
    for epsilon in EPSILONS["disagreement"]:
        rates, saved = np.empty(draws), np.empty(draws)
        for draw in range(draws):
            taken = rng.integers(len(trace), size=rows)
            # Without its states: they are not read, and are the bulk.
            part = replace(
                trace,
                states=np.empty((rows, trace.num_layers, 0)),
                prediction=trace.prediction[taken],
                labels=trace.labels[taken],
            )
            value = conformal_threshold(part, scores[taken], epsilon=epsilon).value
            rates[draw] = losses_at(losses, scores, value).mean()
            saved[draw] = 1 - first_exit(scores > value).mean() / trace.num_layers
        results.append(
            {
                "epsilon": epsilon,
                "mean_rate": float(rates.mean()),
                "standard_error": float(rates.std(ddof=1) / np.sqrt(draws)),
                "share_of_draws_above_epsilon": float((rates > epsilon).mean()),
                "saved_layers": float(saved.mean()),
            }
        )
    return results


def scored(args: Args) -> tuple[dict[str, Trace], Scores]:
    """The traces of calibration and dev, and the scores of both agents on them."""
    agents: dict[str, tuple[Agent, tuple[str, ...]]] = {
        "confidence": (make_agent("confidence"), ("confidence",)),
        "expected-return": (ExpectedReturn(seed=args.seed), ("hidden", "layer", "confidence")),
    }
    traces: dict[str, Trace] = {}
    scores: Scores = {}
    for name, (agent, observe) in agents.items():
        envs = {
            split: EarlyExitEnv(
                trace=str(args.recording), split=split, alpha=ALPHA, observe=observe, reward="paper"
            )
            for split in ("train", "calibration", "dev")
        }
        agent.learn(envs["train"], TIMESTEPS)
        problems = {split: env.problem for split, env in envs.items() if split != "train"}
        traces = {split: problem.trace for split, problem in problems.items()}
        scores[name] = {
            split: agent.policy.scores_on(problem) for split, problem in problems.items()
        }
    return traces, scores


def show(what: str, epsilon: float, rows: int, results: list[dict[str, Any]]) -> None:
    """Prints one line."""
    cells = [
        f"{'refused':>18}"
        if "refused" in result
        else f"{result['violations']:8.4f} {result['saved_layers']:9.1%}"
        for result in results
    ]
    first = results[0]
    other = [
        f"{first[f'violations_of_{n}']:8.3f}" for n in ("rate", "search") if "refused" not in first
    ]
    print(f"{what:44}{epsilon:7g}{rows:6d}", *cells, *other)


def from_made_up(args: Args, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Draws from populations that are hard."""
    entries: list[dict[str, Any]] = []
    for epsilon in (0.02, 0.05):
        for name, population in made_up(epsilon, rng).items():
            for rows in (500, 2000):
                drawn = population.draw(rows, args.draws, rng)
                results = violations(population, rows, epsilon, drawn)
                entries.append(
                    {"population": name, "epsilon": epsilon, "rows": rows, "results": results}
                )
                show(name, epsilon, rows, results)
    return entries


def from_text(
    args: Args, traces: dict[str, Trace], scores: Scores, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Draws from the recorded rows."""
    entries: list[dict[str, Any]] = []
    for (split, sizes), (agent, given), (risk, epsilons) in product(
        SIZES.items(), scores.items(), EPSILONS.items()
    ):
        population = Population.of(loss_table(traces[split], risk), given[split])
        for rows in sizes:
            drawn = population.draw(rows, args.draws, rng)
            parted = population.split(rows, args.draws, rng)
            for epsilon in epsilons:
                entry = {"population": split, "scores": agent, "risk": risk, "epsilon": epsilon}
                results = violations(population, rows, epsilon, drawn, parted)
                entries.append({**entry, "rows": rows, "results": results})
                show(f"{split}, {agent}, {risk}", epsilon, rows, results)
    return entries


def once(traces: dict[str, Trace], scores: Scores) -> list[dict[str, Any]]:
    """Each promise from all calibration rows, checked on dev."""
    entries: list[dict[str, Any]] = []
    for (agent, given), (risk, epsilons) in product(scores.items(), EPSILONS.items()):
        for epsilon in epsilons:
            promise = guaranteed_threshold(
                traces["calibration"], given["calibration"], risk=risk, epsilon=epsilon, delta=0.05
            )
            checked = promise.check(traces["dev"], given["dev"])
            entries.append({"scores": agent, **checked})
            there = checked["there"]
            low, high = there["rate_interval"]
            print(
                f"{agent:16} {promise.name:42} calibration {checked['calibration_rate']:.4f}, "
                f"dev {there['rate']:.4f} [{low:.4f}, {high:.4f}], "
                f"saved {there['saved_layers']:.1%}, accuracy {there['accuracy']:.4f}"
            )
    return entries


def main(args: Args) -> None:
    """Measures."""
    rng = np.random.default_rng(args.seed)
    print(
        f"{'share of draws above epsilon':44}epsilon  rows",
        *(f" delta {d:4g}    saved" for d in DELTAS),
        "   rate   search",
    )
    simulation = from_made_up(args, rng)
    traces, scores = scored(args)
    text = from_text(args, traces, scores, rng)
    kept = [
        result["at_most_delta_within_3_errors"]
        for entry in simulation + text
        for result in entry["results"]
        if "refused" not in result
    ]
    print(f"\nviolations at most delta, within 3 standard errors: {sum(kept)} of {len(kept)}")
    on_average = [
        {"population": split, "scores": agent, "rows": rows, **result}
        for (split, sizes), (agent, given) in product(SIZES.items(), scores.items())
        for rows in sizes
        for result in conformal(traces[split], given[split], rows, args.conformal_draws, rng)
    ]
    above = max((c["mean_rate"] - c["epsilon"]) / c["standard_error"] for c in on_average)
    print(f"conformal: the mean rate is above epsilon by {above:.1f} standard errors at most")
    print("\nfrom all calibration rows, on dev")
    used = once(traces, scores)
    header = traces["dev"].header
    write(
        "guarantee",
        {
            "recording": {
                "task": header.task,
                "backbone": header.backbone,
                "policy_data": header.policy_data,
                "seed": header.seed,
            }
            | {split: trace.fingerprint for split, trace in traces.items()},
            "rows": {split: len(trace) for split, trace in traces.items()},
            "full_depth_accuracy": {
                split: float(trace.correct[:, -1].mean()) for split, trace in traces.items()
            },
            "draws": args.draws,
            "conformal_draws": args.conformal_draws,
            "simulation": simulation,
            "text": text,
            "conformal": on_average,
            "from_all_calibration_rows_on_dev": used,
        },
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
