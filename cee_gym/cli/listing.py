"""`cee-gym envs` and `cee-gym agents`: what there is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cee_gym.cli.options import command
from cee_gym.tables import paragraph

if TYPE_CHECKING:
    from cee_gym.traces.trace import Trace


@command("envs")
@dataclass(frozen=True)
class Envs:
    """Lists the environments: which are recorded here, and what would record the others.

    Attributes:
        headroom: Also show what a policy could gain on the dev split of each recording: the mean
            return of the last layer, of the best fixed layer, of the best threshold on the
            confidence, of what Longstaff-Schwartz regression learns, of a bound on that, and of
            hindsight.
    """

    headroom: bool = True

    def run(self) -> None:
        """Prints what is recorded, what is not, and what there is to gain."""
        from cee_gym.envs.registration import BENCHMARKS, TOKEN_BENCHMARKS
        from cee_gym.traces.recordings import (
            MissingRecordingError,
            build_command,
            find_recording,
            home,
            open_split,
            recorded_splits,
        )

        recorded, missing = [], []
        for id, task in (BENCHMARKS | TOKEN_BENCHMARKS).items():
            try:
                path = find_recording(id)
            except MissingRecordingError:
                missing.append(id)
                continue
            recorded.append(id)
            traces = [open_split(path, split) for split in recorded_splits(path)]
            first = traces[0]
            where = "in the package" if home() not in path.parents else f"at {path}"
            sizes = ", ".join(f"{t.header.split} {len(t)}" for t in traces)
            print(f"{id}  (task {task}, recorded {where})")
            print(paragraph(f"{first.header.backbone}, {_layers(first)}; {sizes}", 4))
            print(paragraph(f"trace {first.fingerprint}", 4))
        print("\nNot recorded here:")
        for id in missing:
            print(f"    {id}")
        if missing:
            print("To record one, name a backbone and, without the hub, its text:")
            for id in (missing[0], missing[-1]):
                print(paragraph(build_command(id), 4))
        print("A recording of your own: gym.make('EarlyExit', trace=PATH)")
        if self.headroom and recorded:
            _print_headroom(recorded)


def _layers(trace: "Trace") -> str:
    if trace.sequence is None:
        return f"{trace.num_layers} layers"
    return f"{trace.header.depths[-1]} layers, {trace.num_layers} exits; instances are tokens"


def _print_headroom(ids: list[str]) -> None:
    """What there is to gain by learning, of each recording."""
    from cee_gym.agents.presets import OBSERVE
    from cee_gym.errors import CeeGymError
    from cee_gym.headroom import headroom_of
    from cee_gym.problem import open_problem
    from cee_gym.tables import aligned

    rows = [["mean return on dev", "full depth", "fixed layer", "threshold", "learned", "bound"]]
    rows[0].append("hindsight")
    for id in ids:
        try:
            found = headroom_of(open_problem(id, split="dev", observe=OBSERVE))
        except CeeGymError as error:
            rows.append([f"{id}: {error}", *[""] * 6])
            continue
        returns = (found.full_depth, found.fixed_layer, found.threshold)
        rows.append(
            [
                id.removeprefix("EarlyExit-"),
                *(f"{one.mean_return:.3f}" for one in returns),
                f"{found.learned.mean_return:.3f} ± {found.learned.error:.3f}",
                f"{found.bound.mean_return:.3f}",
                f"{found.hindsight.mean_return:.3f}",
            ]
        )
    print(f"\n{aligned(rows)}")
    print(
        paragraph(
            "Fixed layer and threshold are the best ones of train. 'Learned' is what "
            "Longstaff-Schwartz learns there from what agents observe by default, and ± its "
            "standard error. The bound is fitted to dev too. Hindsight knows the answers. A layer "
            "costs 0.01 here. For other observations and prices:"
        )
    )
    print("print(gym.make(ID, split='dev', observe=..., alpha=...).unwrapped.headroom())")


@command("agents")
@dataclass(frozen=True)
class Agents:
    """Lists the agents: what each does, what it observes by default, and its hyper-parameters."""

    def run(self) -> None:
        """Prints a paragraph for each."""
        from cee_gym.agents.registry import (
            agent_names,
            describe,
            hyperparameter_defaults,
            preset_for,
        )

        for name in agent_names():
            preset = preset_for(name)
            settings = {**hyperparameter_defaults(name), **preset.hyperparameters}
            shown = ", ".join(
                key if value is None else f"{key}={value}" for key, value in settings.items()
            )
            print(name)
            print(paragraph(describe(name), 4))
            print(paragraph(f"observes {', '.join(preset.observe)}", 4))
            print(paragraph(f"--set {shown}", 4))
        print("sb3:NAME, sb3-contrib:NAME")
        print(
            paragraph(
                "An algorithm of Stable-Baselines3 or sb3-contrib, such as sb3:ppo, sb3:dqn or "
                "sb3-contrib:trpo.",
                4,
            )
        )
        print(
            "\nA hyper-parameter without a value here is chosen while the agent learns.\n"
            "Learn with one: cee-gym train ID --agent NAME --set KEY=VALUE"
        )
