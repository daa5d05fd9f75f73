"""`cee-gym envs` and `cee-gym agents`: what there is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Envs:
    """What is registered, what is recorded here, and what would record it."""

    def run(self) -> None:
        """Prints a table."""
        from cee_gym.envs.registration import BENCHMARKS
        from cee_gym.traces.recordings import (
            MissingRecordingError,
            build_command,
            find_recording,
            home,
            open_split,
            recorded_splits,
        )

        for id, task in BENCHMARKS.items():
            try:
                path = find_recording(id)
            except MissingRecordingError:
                print(f"{id:30} {task:14} not recorded; {build_command(id)}")
                continue
            traces = [open_split(path, split) for split in recorded_splits(path)]
            sizes = ", ".join(f"{t.header.split} {len(t)}" for t in traces)
            where = "shipped" if home() not in path.parents else str(path)
            first = traces[0]
            print(
                f"{id:30} {task:14} {first.header.backbone}, {first.num_layers} layers, {sizes} "
                f"[{first.fingerprint}] {where}"
            )
        print(f"{'EarlyExit':30} {'your own':14} gym.make('EarlyExit', trace=PATH)")


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
            print(f"{'':20} observes {', '.join(preset_for(name, '').observe)}; --set {keys}")
        print(f"{'sb3:NAME':20} An algorithm of Stable-Baselines3: sb3:ppo, sb3:a2c, sb3:dqn")
        print(f"{'sb3-contrib:NAME':20} One of sb3-contrib: sb3-contrib:trpo, sb3-contrib:qrdqn")
