"""`cee-gym envs` and `cee-gym agents`: what there is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cee_gym.traces.trace import Trace


@dataclass(frozen=True)
class Envs:
    """What is registered, what is recorded here, and what would record it.

    Attributes:
        headroom: also what there is to gain on the dev split of each recording: the mean return of
            the last layer, of the best fixed layer and the best threshold on the confidence, of
            what Longstaff-Schwartz learns from what agents observe by default, of its bound, and of
            hindsight.
    """

    headroom: bool = True

    def run(self) -> None:
        """Prints tables."""
        from cee_gym.envs.registration import BENCHMARKS, TOKEN_BENCHMARKS
        from cee_gym.traces.recordings import (
            MissingRecordingError,
            build_command,
            find_recording,
            home,
            open_split,
            recorded_splits,
        )

        recorded = []
        for id, task in (BENCHMARKS | TOKEN_BENCHMARKS).items():
            try:
                path = find_recording(id)
            except MissingRecordingError:
                print(f"{id:30} {task:14} not recorded; {build_command(id)}")
                continue
            recorded.append(id)
            traces = [open_split(path, split) for split in recorded_splits(path)]
            sizes = ", ".join(f"{t.header.split} {len(t)}" for t in traces)
            where = "shipped" if home() not in path.parents else str(path)
            first = traces[0]
            print(
                f"{id:30} {task:14} {first.header.backbone}, {_layers(first)}, {sizes} "
                f"[{first.fingerprint}] {where}"
            )
        print(f"{'EarlyExit':30} {'your own':14} gym.make('EarlyExit', trace=PATH)")
        if self.headroom and recorded:
            _print_headroom(recorded)


def _layers(trace: "Trace") -> str:
    if trace.sequence is None:
        return f"{trace.num_layers} layers"
    return f"{trace.header.depths[-1]} layers, {trace.num_layers} exits, of tokens"


def _print_headroom(ids: list[str]) -> None:
    """A line for each recording, as soon as it is known."""
    from cee_gym.agents.presets import OBSERVE
    from cee_gym.errors import CeeGymError
    from cee_gym.headroom import headroom_of
    from cee_gym.problem import open_problem

    print(
        f"\n{'mean return on dev':28}{'rows':>6}{'full depth':>11}{'fixed layer':>12}"
        f"{'threshold':>10}{'learned':>16}{'bound':>7}{'hindsight':>10}"
    )
    for id in ids:
        try:
            found = headroom_of(open_problem(id, split="dev", observe=OBSERVE))
        except CeeGymError as error:
            print(f"{id:28} {error}")
            continue
        learned = f"{found.learned.mean_return:.3f} ± {found.learned.error:.3f}"
        print(
            f"{id:28}{found.rows:6}{found.full_depth.mean_return:11.3f}"
            f"{found.fixed_layer.mean_return:12.3f}{found.threshold.mean_return:10.3f}"
            f"{learned:>16}{found.bound.mean_return:7.3f}{found.hindsight.mean_return:10.3f}"
        )
    print(
        "learned from what agents observe by default, at alpha 0.01; for other observations and\n"
        "prices: print(gym.make(ID, split='dev', observe=..., alpha=...).unwrapped.headroom())"
    )


@dataclass(frozen=True)
class Agents:
    """The agents: what each does, what it observes by default, and its hyper-parameters."""

    def run(self) -> None:
        """Prints a table."""
        from cee_gym.agents.registry import (
            agent_names,
            describe,
            hyperparameter_defaults,
            preset_for,
        )

        for name in agent_names():
            keys = ", ".join(hyperparameter_defaults(name))
            print(f"{name:20} {describe(name)}")
            print(f"{'':20} observes {', '.join(preset_for(name).observe)}; --set {keys}")
        print(f"{'sb3:NAME':20} An algorithm of Stable-Baselines3: sb3:ppo, sb3:a2c, sb3:dqn")
        print(f"{'sb3-contrib:NAME':20} One of sb3-contrib: sb3-contrib:trpo, sb3-contrib:qrdqn")
