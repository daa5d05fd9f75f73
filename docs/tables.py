"""The tables of the documentation, made from `benchmarks/results/*.json` and from the code.

Every function gives Markdown, so that no number of the documentation is typed by hand.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@cache
def result(name: str) -> Any:
    """The JSON of one benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def points(difference: dict[str, Any]) -> str:
    """A difference of accuracies and its 95 % interval, in points."""
    return "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format(
        **{key: 100 * difference[key] for key in ("mean", "low", "high")}
    )


def value(path: str, form: str = "") -> str:
    """One number, such as `{{ value demo/policy/own/accuracy .3f }}`."""
    name, *keys = path.split("/")
    found = result(name)
    for key in keys:
        found = found[int(key)] if isinstance(found, list) else found[key]
    return format(found, form)


def machine(name: str) -> str:
    """Where a benchmark ran, and where its figures are."""
    on = result(name)["machine"]
    versions = ", ".join(
        f"{library} {version}"
        for library, version in on.get("versions", {}).items()
        if library in ("torch", "transformers", "gymnasium")
    )
    cores = f"{on['cpu']}, {on['cores']} cores, {on.get('threads', '?')} thread(s)"
    return f"*Figures: `benchmarks/results/{name}.json`. Machine: {cores}; {versions}.*"


NAMES = {"mcid": "M-CID", "mrpc": "MRPC", "rte": "RTE", "sst2": "SST-2"}


def hub_link(agent: str) -> str:
    """A link to the page of an agent, as seen from a page in `docs/results/`."""
    page = "stable-baselines3" if agent.startswith("sb3") else agent
    return f"[`{agent}`](../agents/{page}.md)"


def _summary(runs: list[dict[str, Any]]) -> list[str]:
    own = [run["at_its_own_threshold"] for run in runs]
    half = [run["at_half_of_the_layers"]["accuracy"] for run in runs]
    return [
        f"{np.mean([point['return'] for point in own]):.3f}",
        f"{np.mean([point['accuracy'] for point in own]):.3f}",
        f"{np.mean([point['saved_layers'] for point in own]):.0%}",
        f"{np.mean(half):.3f}",
        f"{np.mean([run['area_under_the_curve'] for run in runs]):.3f}",
        f"{np.mean([run['cpu_seconds'] for run in runs]):.1f}",
    ]


MEASURES = ("return", "accuracy", "saved layers", "accuracy at half", "mean accuracy", "CPU s")


def agents(task: str) -> str:
    """Every agent on one recording."""
    runs = result("agents")["tasks"][task]["agents"]
    return table(("agent", *MEASURES), ([hub_link(name), *_summary(runs[name])] for name in runs))


def agent(*names: str) -> str:
    """Some agents on both recordings, beside the best fixed layer and the confidence rule."""
    rows = []
    for task, found in result("agents")["tasks"].items():
        for name in dict.fromkeys((*names, "confidence", "fixed-layer")):
            rows.append([f"{NAMES[task]}: `{name}`", *_summary(found["agents"][name])])
    return table(("", *MEASURES), rows)


def preset(name: str) -> str:
    """What an agent observes, how long it learns, and its hyper-parameters."""
    from cee_gym.agents.registry import hyperparameter_defaults, preset_for

    found = preset_for(name)
    own = {} if name.startswith("sb3") else hyperparameter_defaults(name)
    settings = {**own, **found.hyperparameters}
    rows = [("observes", ", ".join(f"`{part}`" for part in found.observe))]
    if "learning_rate" in settings or name.startswith("sb3"):
        rows.append(("learns from", f"{found.total_timesteps:,} decisions"))
    rows += [
        (f"`{key}`", "chosen while it learns" if setting is None else f"`{setting}`")
        for key, setting in settings.items()
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)])


def worth_learning() -> str:
    """Fixed layers, the confidence rule and policy improvement, with paired differences."""
    rows = []
    for task, found in result("worth_learning")["sets"].items():
        for split in ("dev", "test"):
            if split not in found["splits"]:
                continue
            here = found["splits"][split]
            mean, differences = here["mean_accuracy"], here["differences"]
            name = NAMES[task] + ("" if split == "dev" else ", test rows")
            rows.append(
                [
                    name,
                    here["rows"],
                    len(here["full_depth"]),
                    f"{np.mean(here['full_depth']):.3f}",
                    f"{mean['fixed layer']:.3f}",
                    f"{mean['confidence']:.3f}",
                    f"{mean['policy-improvement']:.3f}",
                    points(differences["policy-improvement over fixed layer"]),
                    points(differences["policy-improvement over confidence"]),
                ]
            )
    header = ("", "rows", "seeds", "full depth", "fixed layers", "confidence")
    last = ("`policy-improvement`", "over fixed layers, points", "over confidence, points")
    return table((*header, *last), rows)


def half_depth() -> str:
    """A model cut to half of its layers and trained as such, beside early exit at half."""
    rows = []
    for task, found in result("worth_learning")["sets"].items():
        here = found["splits"]["dev"]
        if here.get("cut_and_trained_at_half_depth"):
            at_half = result("worth_learning")["saved_layers"].index(0.5)
            rows.append(
                [
                    NAMES[task],
                    f"{np.mean(here['cut_and_trained_at_half_depth']):.3f}",
                    f"{here['accuracy']['confidence'][at_half]:.3f}",
                    f"{here['accuracy']['policy-improvement'][at_half]:.3f}",
                ]
            )
    return table(("", "cut at half, trained as such", "confidence", "`policy-improvement`"), rows)


def alternation() -> str:
    """Two rounds of alternation against as many updates without."""
    rows = []
    for task, found in result("alternation")["sets"].items():
        cells = [
            " / ".join(
                f"{np.mean(found['accuracy'][way][what]):.3f}"
                for what in ("policy-improvement", "full depth")
            )
            for way in ("before", "policy", "warm-up")
        ]
        both = found["differences"]["policy over warm-up"]
        differences = [points(both[what]) for what in ("policy-improvement", "full depth")]
        rows.append([f"{NAMES[task]}, {found['seeds']} seed(s)", *cells, *differences])
    header = ("early exit / full depth", "before", "alternated", "as many updates without")
    return table((*header, "alternated over without, points", "the same, full depth"), rows)


def strong_exits() -> str:
    """First, third and last exit by recipe, and the confidence rule at 60 % saved layers."""
    found = result("strong_exits")
    fast = found["saved_layers"].index(0.6)
    rows = []
    for task, ways in found["sets"].items():
        cells = []
        for way in ("probe", "ours", "paper", "ordinary"):
            exits = ways[way]["accuracy"]["dev"]
            shown = " ".join(f"{exits[layer]:.3f}" for layer in (0, 2, -1))
            cells.append(f"{shown} / {ways[way]['confidence_rule']['dev'][fast]:.3f}")
        rows.append([NAMES[task], *cells])
    return table(("", "`probe`", "default", "`paper`", "ordinary fine-tuning, then exits"), rows)


def exits_missed() -> str:
    """How far the default recipe is from what was asked of it."""
    rows = [
        [
            f"{NAMES[task]}, {split}",
            f"{100 * here['over_probe_worst_exit']:+.1f}",
            f"{100 * here['over_ordinary_last_exit']:+.1f}",
        ]
        for task, splits in result("strong_exits")["differences"].items()
        for split, here in splits.items()
    ]
    header = ("", "worst exit over its probe, points", "last exit over ordinary fine-tuning")
    return table(header, rows)


def recipe_time() -> str:
    """CPU seconds of each recipe."""
    seconds = result("recipe_time")["mcid"]["cpu_seconds"]
    return table(
        ("recipe", "CPU seconds"), ([f"`{way}`", f"{s:.0f}"] for way, s in seconds.items())
    )


def temperatures() -> str:
    """What temperatures are worth to the confidence rule."""
    rows = []
    for name, found in result("temperatures")["recordings"].items():
        rows.append([name, found["rows"], points(found["gain"])])
    return table(("recording", "rows", "with temperatures over without, points"), rows)


def rte_layers() -> str:
    """Dev accuracy of the shipped RTE at each layer over its seeds."""
    seeds = np.array([seed["dev_accuracy_per_layer"] for seed in result("rte")["seeds"]])
    rows = [
        ["mean of the seeds", *(f"{a:.3f}" for a in seeds.mean(axis=0))],
        ["standard deviation", *(f"{a:.3f}" for a in seeds.std(axis=0, ddof=1))],
        ["in the package", *(f"{a:.3f}" for a in seeds[result("rte")["shipped_seed"]])],
    ]
    return table(("layer", *(str(t + 1) for t in range(seeds.shape[1]))), rows)


def sst2_layers() -> str:
    """Dev accuracy of the shipped SST-2 at each layer."""
    exits = result("rte")["sst2"]["dev_accuracy_per_layer"]
    header = ("layer", *(str(t + 1) for t in range(len(exits))))
    return table(header, [["in the package", *(f"{a:.3f}" for a in exits)]])


def toybert_layers() -> str:
    """Accuracy of the built-in model where a sentence has an answer."""
    exits = result("toybert")["accuracy_per_layer_where_there_is_an_answer"]
    header = ("layer", *(str(t + 1) for t in range(len(exits))))
    return table(header, [["accuracy", *(f"{a:.3f}" for a in exits)]])


def clauses() -> str:
    """What there is to gain on the built-in task."""
    rows = []
    for name, found in result("clauses")["headroom"].items():
        reward, alpha = name.split(", alpha ")
        ways = ("full_depth", "fixed_layer", "threshold", "learned", "bound", "hindsight")
        returns = [
            f"{found[way]['mean_return'] if isinstance(found[way], dict) else found[way]:.3f}"
            for way in ways
        ]
        rows.append([f"{reward}, {alpha}", *returns])
    header = ("reward, alpha", "full depth", "fixed layer", "threshold", "Longstaff-Schwartz")
    return table((*header, "bound", "hindsight"), rows)


def _classification(task: str) -> dict[str, Any]:
    return next(run for run in result("runtime_classification")["runs"] if run["task"] == task)


def runtime() -> str:
    """The runtime on the clock against transformers' own forward."""
    rows = []
    for task in ("mrpc", "sst2"):
        for size in _classification(task)["batch_sizes"]:
            for policy in size["policies"]:
                rows.append(
                    [
                        f"{NAMES[task]}, batch {size['batch_size']}, `{policy['policy']}`",
                        f"{policy['layer_speedup']:.2f}",
                        f"{policy['wall_clock_speedup']:.2f}",
                        f"{policy['wall_clock_speedup_per_layer_speedup']:.2f}",
                        size["wanted_per_layer_speedup"],
                        f"{size['full_depth']['accuracy']:.3f}",
                        f"{policy['accuracy']:.3f}",
                    ]
                )
    header = ("", "layer speed-up", "wall-clock speed-up", "ratio", "ratio asked for")
    return table((*header, "accuracy, full depth", "accuracy"), rows)


def runtime_gpu() -> str:
    """The runtime on a GPU against transformers' own forward."""
    found = result("runtime_gpu")
    rows = []
    for here, before in zip(found["settings"], found["settings_with_cudnn_attention"], strict=True):
        rows.append(
            [
                f"{here['precision']}, batch {here['batch_size']}, {here['length']} tokens",
                f"{here['layer_speedup']:.2f}",
                f"{here['wall_clock_speedup']:.2f}",
                f"{before['wall_clock_speedup']:.2f}",
            ]
        )
    header = ("", "layer speed-up", "wall-clock speed-up", "before cuDNN's attention was avoided")
    return table(header, rows)


def onnx() -> str:
    """Early exit in ONNX Runtime against ONNX Runtime at full depth."""
    rows = []
    for size in result("runtime_onnx")["batch_sizes"]:
        for side in size["sides"]:
            rows.append(
                [
                    f"batch {size['batch_size']}, {side['numbers']}",
                    f"{side['layer_speedup']:.2f}",
                    f"{side['wall_clock_speedup']:.2f}",
                    f"{side['wall_clock_speedup_per_layer_speedup']:.2f}",
                ]
            )
    return table(("", "layer speed-up", "wall-clock speed-up", "ratio"), rows)


def serve() -> str:
    """The server under load."""
    found = result("runtime_serve")
    rows = []
    for way in ("early_exit", "full_depth"):
        here = found[way]
        rows.append(
            [
                way.replace("_", " "),
                f"{here['requests_per_second']:.0f}",
                *(f"{here['milliseconds'][p] / 1000:.2f}" for p in ("p50", "p95", "p99")),
                here["answers"],
                here["lost"] + here["mixed_up"],
            ]
        )
    header = ("", "requests/s", "p50, s", "p95, s", "p99, s", "answers", "lost or mixed up")
    return table(header, rows)


def cost_model() -> str:
    """Predicted against measured speed-ups."""
    rows = [
        [
            f"batch {here['batch_size']}",
            f"{here['layer_speedup']:.2f}",
            f"{here['predicted']:.2f}",
            f"{here['measured']:.2f}",
        ]
        for here in result("cost_model")["speed_ups"]
    ]
    return table(("", "layer speed-up", "predicted", "measured"), rows)


def suitability() -> str:
    """The predictions of `cee-gym suitability` against the clock."""
    rows = [
        [NAMES[task], found["within_10_percent"], f"{found['most_wrong']:.1%}", verdict]
        for task, found in result("suitability")["sets"].items()
        for verdict in [found["said"]["verdict"].split(":")[0]]
    ]
    return table(("", "predictions within 10 %", "furthest off", "what it says"), rows)


def guarantee() -> str:
    """The worst share of calibration draws that break a guarantee."""
    rows = []
    for delta in (0.1, 0.05):
        found = [
            one
            for setting in (*result("guarantee")["simulation"], *result("guarantee")["text"])
            for one in setting["results"]
            if one["delta"] == delta and not one.get("refused")
        ]
        rows.append(
            [
                f"delta = {delta}",
                f"{max(one['violations'] for one in found):.3f}",
                "{:.2f} to {:.2f}".format(
                    min(one["violations_of_rate"] for one in found),
                    max(one["violations_of_rate"] for one in found),
                ),
            ]
        )
    header = ("", "promise broken, worst setting", "without a test, from the rate alone")
    return table(header, rows)


def guarantee_on_dev(risk: str, epsilon: str) -> str:
    """The share of dev texts that break a promise made on calibration, confidence rule."""
    found = next(
        one["there"]["rate"]
        for one in result("guarantee")["from_all_calibration_rows_on_dev"]
        if one["scores"] == "confidence"
        and one["risk"] == risk
        and one["epsilon"] == float(epsilon)
    )
    return f"{found:.3f}"


def one_policy() -> str:
    """One policy for every speed against one policy for each."""
    found = result("one_policy_every_speed")
    rows = []
    for name, key in (
        ("all eight levels", "points_lost"),
        ("the four fastest", "points_lost_at_the_four_fastest"),
    ):
        low, high = found[key]["interval_95"]
        rows.append([name, f"{found[key]['mean']:.2f} ({low:.2f} to {high:.2f})"])
    return table(("", "points lost by using one policy"), rows)


def start_from_confidence() -> str:
    """Policies that start from the confidence rule."""
    found = result("start_from_confidence")
    fast = [found["levels"].index(level) for level in (0.7, 0.8)]
    task = found["tasks"]["sst2"]
    ways = {"bare confidence threshold": task["bare_rule"], **task["mean_over_seeds"]}
    rows = [
        [
            name.replace("_", " "),
            *(f"{way[s][i]:.3f}" for i in fast for s in ("calibration", "dev")),
        ]
        for name, way in ways.items()
    ]
    header = ("start, alpha it was trained at", "70 %, calibration", "70 %, dev")
    return table((*header, "80 %, calibration", "80 %, dev"), rows)


def default_reward(what: str) -> str:
    """Mean accuracy by reward or by observation."""
    means = result("default_reward")["means"]
    return table((what[:-1], "mean accuracy"), ([k, f"{v:.3f}"] for k, v in means[what].items()))


def policy_data() -> str:
    """Which data the policy should learn on, M-CID."""
    ways = result("policy_data_mcid")["mean_over_seeds"]
    levels = list(ways["cross_fit"]["accuracy_at_level"])
    rows = []
    for way, found in ways.items():
        cells = [f"{found['accuracy_at_level'][level]:.3f}" for level in levels]
        rows.append(
            [f"`{way}`", f"{found['full_depth_accuracy']:.3f}", *cells, f"{found['return']:.3f}"]
        )
    rule = ways["cross_fit"]["confidence_at_level"]
    rows.append(["confidence threshold", "", *(f"{rule[level]:.3f}" for level in levels), ""])
    header = ("policy learns on", "full depth", *(f"{float(level):.0%}" for level in levels))
    return table((*header, "return"), rows)


def vector_env() -> str:
    """Steps a second of the vector environment."""
    found = result("vector_env")
    rows = [
        [
            here["num_envs"],
            f"{here['env'] / 1e6:.2f}",
            f"{here['np_take'] / 1e6:.1f}",
            f"{here['ratio']:.0%}",
        ]
        for here in found["steps_per_second"]
    ]
    copies = found["sync_vector_env"]
    rows.append([f"{copies['num_envs']} in `SyncVectorEnv`", f"{copies['env'] / 1e6:.2f}", "", ""])
    header = ("environments", "million steps/s of CPU time", "`np.take` of the same rows", "share")
    return table(header, rows)


def ppo() -> str:
    """Our PPO and Stable-Baselines3's."""
    found = result("ppo")
    rows = []
    for learner, speed in found["learner"]["steps_per_second"].items():
        runs = [run for run in found["learner"]["runs"] if run["learner"] == learner]
        returns = [run["dev_return"] for run in runs]
        rows.append(
            [
                learner.replace("_", " "),
                f"{speed:,.0f}",
                f"{np.mean(returns):.3f} ± {np.std(returns, ddof=1):.3f}",
            ]
        )
    return table(("", "steps/s while learning", "dev return, mean and deviation of 3 seeds"), rows)


def stories() -> str:
    """Learned exits of tokens against CALM's softmax gap, on the stories."""
    rows = []
    seeds = result("generation_stories")["seeds"].values()
    for way in ("adapters only", "trained under copying"):
        for budget in ("0.25", "0.5"):
            found = [seed[way]["budgets"][budget] for seed in seeds]
            for where in ("trace", "live"):
                gap = [one["softmax gap (CALM)"][where]["agreement"] for one in found]
                cells = []
                for name in ("longstaff-schwartz", "policy-improvement"):
                    over = [100 * one[name][where]["minus_gap"] for one in found]
                    lowest = min(100 * one[name][where]["interval"][0] for one in found)
                    cells.append(", ".join(f"{x:+.1f}" for x in over) + f" (lowest {lowest:.1f})")
                place = "by the trace" if where == "trace" else "running"
                name = f"{way}, {float(budget):.0%} saved, {place}"
                rows.append([name, f"{np.mean(gap):.3f}", *cells])
    header = ("agreement with the full model", "softmax gap", "`longstaff-schwartz` over it")
    return table((*header, "`policy-improvement` over it"), rows)


def copy_gap() -> str:
    """Traces at full depth and under the policy against the running model."""
    rows = [
        [
            name,
            *(
                f"{found[way]:.3f}"
                for way in ("trace_at_full_depth", "trace_under_the_policy", "live")
            ),
        ]
        for name, found in result("generation_copy_gap")["stories"].items()
    ]
    return table(("", "trace at full depth", "trace under the policy", "running model"), rows)


def decode() -> str:
    """Seconds of a decoding step against the faster way of running all layers."""
    rows = []
    for model, found in result("generation_decode").items():
        if not isinstance(found, dict) or "batch 1" not in found:
            continue
        for size in ("batch 1", "batch 16"):
            if size not in found:
                continue
            for way in ("copy", "recompute"):
                cells = []
                for speed in ("1.5", "2.0"):
                    here = found[size].get(f"{way} at {speed}")
                    cells.append(
                        f"{here['wall_clock_speedup']:.2f} ({here['ratio']:.2f})" if here else ""
                    )
                for speed in ("1.5", "2.0"):
                    here = (found[size].get("economize") or {}).get(f"{way} at {speed}")
                    cells.append(f"{here['wall_clock_speedup']:.2f}" if here else "")
                rows.append([f"{model}, {size}, `{way}`", *cells])
    header = ("", "layer speed-up 1.5", "layer speed-up 2", "`economize`, 1.5", "`economize`, 2")
    return table(header, rows)


def smollm2() -> str:
    """A real model on instructions."""
    rows = []
    for data in ("Dolly", "Alpaca", "CNN/DailyMail"):
        for name, found in result("generation_smollm2")[data]["policies"].items():
            live = found["live"]
            rows.append(
                [
                    f"{data}: {name}",
                    f"{live['agreement']:.3f} ± {live['error']:.3f}",
                    f"{live['perplexity']:.1f}",
                    f"{found['tokens_a_cpu_second']:.1f}",
                ]
            )
    return table(("", "agreement, running", "perplexity", "tokens per CPU second"), rows)


def leaderboard(id: str) -> str:
    """Agents on one recording, best first, with what is known of it."""
    found = result("leaderboard")
    known = found["known"][id]
    rows = [
        [
            f"({name.replace('_', ' ')})",
            f"{known[name]['mean_return']:.4f} ± {known[name]['error']:.4f}",
            f"{known['hindsight']['mean_return'] - known[name]['mean_return']:.4f}",
            "",
            f"{known[name]['accuracy']:.3f}",
            f"{known[name]['saved_layers']:.1%}",
            "",
        ]
        for name in ("fixed_layer", "threshold", "learned", "bound", "hindsight")
    ]
    for line in found["lines"]:
        if line["id"] == id:
            score = line["normalised"]
            rows.append(
                [
                    f"`{line['agent']}`",
                    f"{np.mean(line['returns']):.4f} ± {line['error']:.4f}",
                    f"{line['regret']:.4f}",
                    "" if score is None else f"{np.mean(score):.2f}",
                    f"{line['accuracy']:.3f}",
                    f"{line['saved_layers']:.1%}",
                    f"{line['seconds']:.1f}",
                ]
            )
    header = ("", "return", "regret", "normalised", "accuracy", "saved layers", "seconds")
    return table(header, sorted(rows, key=lambda row: -float(row[1].split()[0])))


def study(name: str) -> str:
    """The summary of a study: interquartile means, and the probability of beating the rule."""

    def shown(found: dict[str, float]) -> str:
        return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"

    groups = result(f"studies/{name}")["groups"]
    several = [key for key in ("exits", "reward") if len({group[key] for group in groups}) > 1]
    rows = [
        [
            ", ".join(str(group[key]) for key in ("agent", *several)),
            shown(group["interquartile_mean"]),
            shown(group["better_than_confidence"]) if "better_than_confidence" in group else "",
        ]
        for group in sorted(groups, key=lambda one: -one["interquartile_mean"]["mean"])
    ]
    header = (", ".join(("agent", *several)), "IQM accuracy", "better than confidence")
    return table(header, rows)


def what_it_buys() -> str:
    """The table of the README, at most six rows."""
    own = result("demo")["policy"]["own"]
    full = result("demo")["full_depth_accuracy"]
    server = result("runtime_serve")
    rows = [
        [
            "built-in task, 12 layers (`make demo`)",
            f"{own['saved_layers']:.0%} of the layers saved at accuracy {own['accuracy']:.3f}; "
            f"full depth has {full:.3f}",
        ]
    ]
    sets = result("worth_learning")["sets"]
    at_half = result("worth_learning")["saved_layers"].index(0.5)
    for task, model in (("sst2", "MiniLM, 6 layers"), ("mcid", "MiniLM, 6 layers")):
        here = sets[task]["splits"]["dev"]
        rows.append(
            [
                f"{NAMES[task]}, {model}",
                f"half of the layers saved at accuracy "
                f"{here['accuracy']['policy-improvement'][at_half]:.3f}; full depth has "
                f"{np.mean(here['full_depth']):.3f}, half a model trained as such "
                f"{np.mean(here['cut_and_trained_at_half_depth']):.3f}",
            ]
        )
    rows.append(
        [
            "learned policy against one tuned confidence threshold",
            "SST-2 {}, M-CID {} points of accuracy".format(
                *(
                    points(
                        sets[task]["splits"]["dev"]["differences"][
                            "policy-improvement over confidence"
                        ]
                    )
                    for task in ("sst2", "mcid")
                )
            ),
        ]
    )
    rows.append(
        [
            "`cee-gym serve`, SST-2, 64 clients",
            f"{server['early_exit']['requests_per_second']:.0f} requests/s; full depth answers "
            f"{server['full_depth']['requests_per_second']:.0f}",
        ]
    )
    small = result("generation_decode")["12x512, 8 heads, 2 of keys"]
    speed = [small[f"batch {n}"]["copy at 2.0"]["wall_clock_speedup"] for n in (1, 16)]
    rows.append(
        [
            "decoding, half of the layers run",
            f"{speed[0]:.2f} times as fast at batch 1, {speed[1]:.2f} times at batch 16",
        ]
    )
    return table(("what", "measured on two CPU cores"), rows).replace("|---:", "|---")
