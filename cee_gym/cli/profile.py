"""`cee-gym profile`: what each part of a model takes here, and what a policy would gain."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from cee_gym.cli.arguments import Recording, SpeedArguments, check_recording, check_there, loading
from cee_gym.cli.options import command
from cee_gym.cost import BATCH_SIZES
from cee_gym.errors import CeeGymError, DataError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from cee_gym.cost import CostModel
    from cee_gym.policies.base import ExitPolicy
    from cee_gym.traces.trace import Trace

    Measuring = Callable[[], CostModel]

Lengths = np.ndarray[tuple[int], np.dtype[np.int64]]


@command("profile")
@dataclass(frozen=True)
class Profile:
    """Measures what embedding, layers, exits and policy cost on this machine.

    It measures several batch sizes and lengths. For a decoder it measures one decoding step, after
    a text of each length.

    The file can be the cost in a reward: gym.make(ID, reward=Reward(cost="profile.json")). With a
    policy and a recording it also predicts how much faster the policy would be, before it is
    deployed.

    Attributes:
        model: A saved directory, a run of train, a name on the hub, or the directory of a model
            with exits, such as RECORDING/models/deployed.
        policy: A run of train, or the directory of a policy.
        trace: A recording of this model. The speed-up is predicted from where the policy leaves on
            its dev split.
        data: The texts of the recording, as for build; their lengths are then used. Without them
            the prediction is for texts of one length.
        speed: How fast the policy should be.
        output: The file to write.
        batch_sizes: The numbers of texts that run together. By default 1 to 128; for a decoder 1 to
            16.
        lengths: The lengths in tokens. By default 8 to 128, as far as the model goes; for a decoder
            32 and 128.
        observe: For a decoder without --policy: the parts of an observation that a policy will
            read. By default they are hidden and layer. Parts such as margin need an LM head at each
            exit.
        seconds: About how long to measure. At least 5 runs of each size are made.
        device: The device to measure on. By default it is the accelerator, where there is one.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    policy: Path | None = None
    trace: Recording = None
    data: str | None = None
    speed: SpeedArguments = field(default_factory=SpeedArguments)
    output: Path = Path("profile.json")
    batch_sizes: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    observe: tuple[str, ...] = ()
    seconds: float = 60.0
    device: str | None = None

    def run(self) -> None:
        """Measures, writes the profile and prints it."""
        from cee_gym.inference.pretrained import load_policy, weights_in
        from cee_gym.traces.recordings import open_split

        speed = self.speed.speed()
        if self.trace is not None and self.policy is None:
            raise CeeGymError("--trace is what to predict a policy's exits on: give --policy too")
        if self.data is not None and self.trace is None:
            raise CeeGymError("--data is the text of a recording: give --trace too")
        if speed.given and self.policy is None:
            raise CeeGymError(f"{self.speed.option} is of a policy: give --policy too")
        if self.observe and self.policy is not None:
            raise CeeGymError("--policy says what it observes: leave --observe out")
        check_there("--policy", self.policy)
        check_recording(self.trace)
        weights = weights_in(loading(self.model))
        from cee_gym.exits.lm_head import has_exits

        policy = None
        if self.policy is not None:
            policy = load_policy(self.policy, speed)
            policy.check_has_a_speed()
        trace = None if self.trace is None else open_split(self.trace, "dev")
        measure = self._of_decoder if has_exits(weights) else self._of_classifier
        measuring, texts = measure(weights, policy, trace)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        if self.output.is_dir():
            raise CeeGymError(f"--output {self.output} is a directory: give the name of a file")
        costs = measuring()
        if texts is not None:
            costs = costs.at(costs.batch_sizes[0], int(np.median(texts)))
        costs.save(self.output)
        print(_table(costs))
        if policy is not None and trace is not None:
            print(f"\n{_prediction(costs, policy, trace, texts)}")
        reward = f"Reward(cost={str(self.output)!r})"
        print(f"\n{self.output}; as the cost of a reward: gym.make(ID, reward={reward})")

    def _of_classifier(
        self, weights: Path, policy: "ExitPolicy | None", trace: "Trace | None"
    ) -> "tuple[Measuring, Lengths | None]":
        """What measures, and how long the texts of the trace are."""
        from cee_gym.backbones.fingerprint import fingerprint
        from cee_gym.exits import load_model
        from cee_gym.measuring import profile

        if self.observe:
            raise CeeGymError("--observe is for a decoder: leave it out")
        model = load_model(weights)
        _put(model, self.device)
        self._check_trace(trace, fingerprint(model))
        texts = None
        if self.data is not None and trace is not None:
            texts = _lengths(trace, self.data, weights, model.config.max_tokens)
        return partial(profile, model, policy, **self._sizes(BATCH_SIZES)), texts

    def _of_decoder(
        self, weights: Path, policy: "ExitPolicy | None", trace: "Trace | None"
    ) -> "tuple[Measuring, Lengths | None]":
        """See `_of_classifier`."""
        from cee_gym.exits.lm_head import MultiExitDecoder
        from cee_gym.generation import profiling

        if self.data is not None:
            raise CeeGymError("--data is for a classifier: give a decoder's --lengths instead")
        decoder = MultiExitDecoder.load(weights).eval()
        _put(decoder, self.device)
        self._check_trace(trace, decoder.fingerprint)
        settings = self._sizes(profiling.BATCH_SIZES)
        if self.observe:
            settings["observe"] = self.observe
        return partial(profiling.profile_decoder, decoder, policy, **settings), None

    def _sizes(self, batch_sizes: tuple[int, ...]) -> dict[str, Any]:
        return {
            "batch_sizes": self.batch_sizes or batch_sizes,
            "lengths": self.lengths or None,
            "seconds": self.seconds,
            "progress_bar": True,
        }

    def _check_trace(self, trace: "Trace | None", model: str) -> None:
        if trace is not None and trace.header.model not in (None, model):
            raise CeeGymError(
                f"the recording at {self.trace} is of model {trace.header.model}, not {model}: "
                f"give one of the model at {self.model}"
            )


def _put(model: "torch.nn.Module", device: str | None) -> None:
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    try:
        model.to(torch.device(device or accelerator or "cpu"))
    except (RuntimeError, AssertionError) as error:  # not known; not compiled in
        raise CeeGymError(f"--device {device}: {first_line(error)}") from None


def _lengths(trace: "Trace", data: str, model: Path, max_tokens: int) -> Lengths:
    """Tokens of each row of a trace, `[N]`."""
    from cee_gym.backbones.encoding import EncodedText, load_tokenizer
    from cee_gym.tasks.loading import load_splits
    from cee_gym.traces.recordings import recorded_task

    split = load_splits(recorded_task(trace), data)[trace.header.split]
    lengths = EncodedText(split, load_tokenizer(str(model)), max_tokens).lengths
    by_row = dict(zip(split["row_id"], lengths.tolist(), strict=True))
    if missing := [row for row in trace.row_ids.tolist() if row not in by_row]:
        raise DataError(f"--data {data} has no row {missing[0]}: give the text of {trace.path}")
    return np.array([by_row[row] for row in trace.row_ids.tolist()])


def _table(costs: "CostModel") -> str:
    from cee_gym.tables import aligned, paragraph

    exit, start = ("layer", "embedding") if costs.depths is None else ("exit", "every token")
    rows = [["batch size", "tokens", start, exit, "head", "decision", "full depth"]]
    for i, batch_size in enumerate(costs.batch_sizes):
        for j, length in enumerate(costs.lengths):
            parts = (costs.layers, costs.heads, costs.policy[:-1])
            means = [float(part[:, i, j].mean()) for part in parts]
            first, last = costs.embedding[i, j], costs.heads[-1, i, j]
            whole = first + costs.layers[:, i, j].sum() + last
            seconds = [first, *means, whole]
            rows.append([f"{batch_size}", f"{length}", *(f"{1e3 * s:.3f}" for s in seconds)])
    machine = costs.machine
    where = machine["device"]
    if where == "cpu":
        where = f"{machine['processor']}, threads {machine['threads']}"
    exits = "" if costs.depths is None else f", exits at {', '.join(map(str, costs.depths))}"
    meant = "layer, head and decision: the mean over layers"
    if costs.depths is not None:
        meant = (
            "every token: embedding, keys and values, LM head if the policy reads none; exit: the "
            "layers since the exit before; means over exits"
        )
    return (
        f"model {costs.model}, {costs.full_depth} layers{exits}, {machine['dtype']}, on {where}\n"
        f"{paragraph(f'milliseconds of a batch ({meant})')}\n\n"
        f"{aligned(rows)}"
    )


def _prediction(
    costs: "CostModel", policy: "ExitPolicy", trace: "Trace", texts: Lengths | None
) -> str:
    from cee_gym.measuring import predict
    from cee_gym.problem import Problem
    from cee_gym.tables import aligned, paragraph

    problem = Problem(trace, observe=policy.observe, alpha=policy.alpha_range)
    exits = policy.exit_layers(policy.scores_on(problem))
    all_alike = {f"{t} tokens": np.full(len(exits), t) for t in costs.lengths}
    columns = all_alike if texts is None else {"these texts": texts}
    rows = [["batch size", *columns]]
    for batch_size in costs.batch_sizes:
        cells = []
        for lengths in columns.values():
            predicted = predict(costs, exits, lengths, batch_size)
            each = [1e3 * s / len(exits) for s in (predicted.full_depth, predicted.early_exit)]
            cells.append(f"{predicted.wall_clock_speedup:.2f}x ({each[0]:.2f} -> {each[1]:.2f})")
        rows.append([str(batch_size), *cells])
    one = "text" if costs.depths is None else "token"
    said = f"predicted wall-clock speed-up (milliseconds a {one} at full depth -> with early exit)"
    return (
        f"{policy.name} on {len(exits)} {one}s of {trace.header.split}: layer speed-up "
        f"{trace.depths[-1] / trace.depths[exits - 1].mean():.2f}x\n"
        f"{paragraph(said)}\n\n"
        f"{aligned(rows)}"
    )
