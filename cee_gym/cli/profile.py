"""`cee-gym profile`: what each part of a model takes here, and what a policy would gain."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from cee_gym.cli.arguments import quiet_transformers, task_named
from cee_gym.cost import BATCH_SIZES
from cee_gym.errors import CeeGymError, DataError, first_line
from cee_gym.runs import is_run, newest_round

if TYPE_CHECKING:
    from cee_gym.agents.base import Agent
    from cee_gym.cost import CostModel
    from cee_gym.exits import MultiExitModel
    from cee_gym.traces.trace import Trace

Lengths = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Profile:
    """Measures embedding, layers, heads and policy here, by batch size and length.

    The file can be the cost in a reward: gym.make(ID, cost="profile.json"). With an agent and a
    recording it also predicts how much faster the agent would be, before it is deployed.

    Attributes:
        model: a directory that was saved, a run of train, a name on the hub, or the directory of a
            model with exits, such as RECORDING/models/deployed.
        agent: a run of train, or an agent's directory.
        trace: a recording of this model; the agent's exits on its dev split are those predicted
            for. (Exits are those of the rule p > 1/2.)
        data: the recording's text, as for build, for the lengths of its dev split; without it the
            prediction is made for texts of one length.
        alpha: hold an agent that learned with a range of alpha at this price of a layer.
        output: the file to write.
        batch_sizes: texts run together.
        lengths: in tokens; by default 8 to 128, as far as the model goes.
        seconds: about how long to measure; 5 runs of each size are made in any case.
        device: by default the accelerator, where there is one.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    agent: Path | None = None
    trace: Path | None = None
    data: str | None = None
    alpha: float | None = None
    output: Path = Path("profile.json")
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    lengths: tuple[int, ...] = ()
    seconds: float = 60.0
    device: str | None = None

    def run(self) -> None:
        """Measures, writes the profile and prints it."""
        from cee_gym.backbones.fingerprint import fingerprint
        from cee_gym.exits import load_model
        from cee_gym.inference.pretrained import weights_directory
        from cee_gym.measuring import profile
        from cee_gym.traces.recordings import open_split

        quiet_transformers()
        if self.trace is not None and self.agent is None:
            raise CeeGymError("--trace is what to predict an agent's exits on: give --agent too")
        if self.data is not None and self.trace is None:
            raise CeeGymError("--data is the text of a recording: give --trace too")
        if self.alpha is not None and self.agent is None:
            raise CeeGymError("--alpha is what to hold an agent at: give --agent too")
        weights = weights_directory(self.model)
        model = load_model(weights)
        _put(model, self.device)
        agent = None if self.agent is None else _agent(self.agent, self.alpha)
        trace = None if self.trace is None else open_split(self.trace, "dev")
        texts = None
        if trace is not None:
            if trace.header.get("model") not in (None, fingerprint(model)):
                raise CeeGymError(
                    f"the recording at {self.trace} is of model {trace.header['model']}, not "
                    f"{fingerprint(model)}: give one of the model at {self.model}"
                )
            if self.data is not None:
                texts = _lengths(trace, self.data, weights, model.config.max_tokens)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        if self.output.is_dir():
            raise CeeGymError(f"--output {self.output} is a directory: give the name of a file")
        costs = profile(
            model,
            agent,
            batch_sizes=self.batch_sizes,
            lengths=self.lengths or None,
            seconds=self.seconds,
            progress_bar=True,
        )
        if texts is not None:
            costs = costs.at(costs.batch_sizes[0], int(np.median(texts)))
        costs.save(self.output)
        print(_table(costs))
        if agent is not None and trace is not None:
            print(f"\n{_prediction(costs, agent, trace, texts)}")
        print(f"\n{self.output}; as the cost of a reward: gym.make(ID, cost={str(self.output)!r})")


def _put(model: "MultiExitModel", device: str | None) -> None:
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    try:
        model.to(torch.device(device or accelerator or "cpu"))  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:  # not known; not compiled in
        raise CeeGymError(f"--device {device}: {first_line(error)}") from None


def _agent(path: Path, alpha: float | None) -> "Agent":
    """The agent, held at this price of a layer where one is given."""
    from cee_gym.agents.at_alpha import lacks_a_speed, let_go
    from cee_gym.agents.base import load_agent

    agent = load_agent(_agent_directory(path))
    if alpha is not None:
        return let_go(agent).at(alpha=alpha)
    if lacks_a_speed(agent):
        low, high = agent.alpha_range
        raise CeeGymError(
            f"this {agent.name} agent has a speed for every alpha from {low:g} to {high:g}: give "
            "--alpha"
        )
    return agent


def _agent_directory(path: Path) -> Path:
    """That of an agent, or of the one of a run's last complete round."""
    if (path / "agent.json").exists():
        return path
    if not is_run(path):
        raise CeeGymError(f"there is neither an agent nor a complete run at {path}")
    return newest_round(path) / "agent"


def _lengths(trace: "Trace", data: str, model: Path, max_tokens: int) -> Lengths:
    """Tokens of each row of a trace, `[N]`."""
    from cee_gym.backbones.encoding import EncodedText, load_tokenizer
    from cee_gym.tasks.loading import load_splits

    split = load_splits(task_named(trace.header["task"]), data)[trace.header["split"]]
    lengths = EncodedText(split, load_tokenizer(str(model)), max_tokens).lengths
    by_row = dict(zip(split["row_id"], lengths.tolist(), strict=True))
    if missing := [row for row in trace.row_ids.tolist() if row not in by_row]:
        raise DataError(f"--data {data} has no row {missing[0]}: give the text of {trace.path}")
    return np.array([by_row[row] for row in trace.row_ids.tolist()])


def _table(costs: "CostModel") -> str:
    from cee_gym.evaluation.report import aligned

    rows = [["batch size", "tokens", "embedding", "layer", "head", "decision", "full depth"]]
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
    return (
        f"model {costs.model}, {costs.num_layers} layers, {machine['dtype']}, on {where}\n"
        f"milliseconds of a batch (layer, head and decision: the mean over layers)\n\n"
        f"{aligned(rows)}"
    )


def _prediction(costs: "CostModel", agent: "Agent", trace: "Trace", texts: Lengths | None) -> str:
    from cee_gym.envs import EarlyExitEnv
    from cee_gym.evaluation.report import aligned
    from cee_gym.measuring import predict
    from cee_gym.returns import first_exit

    env = EarlyExitEnv(trace=trace, split="dev", observe=agent.observe, alpha=agent.alpha_range)
    exits = first_exit(agent.exit_probabilities(env.observations) > 0.5)
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
    return (
        f"{agent.name} on {len(exits)} texts of {trace.header['split']}: layer speed-up "
        f"{costs.num_layers / exits.mean():.2f}x\n"
        "predicted wall-clock speed-up (milliseconds a text at full depth -> with early exit)\n\n"
        f"{aligned(rows)}"
    )
