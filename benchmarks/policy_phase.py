"""An epoch of the policy phase on a trace, against running the frozen backbone for every rollout.

    python benchmarks/policy_phase.py --models DIR --data DIR

Both do the same updates: batches of 32 instances, K = 8 rollouts each, REINFORCE. Without a trace
the states come from the frozen backbone, run on every rollout (batches of like length, no
padding beyond the longest row, no gradient), as in the method's released program.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import tyro
from common import write

from cee_gym.agents import Reinforce
from cee_gym.agents.network_agent import Batches
from cee_gym.envs import EarlyExitEnv
from cee_gym.tasks import get_task
from cee_gym.traces.texts import collect
from cee_gym.training.config import RecordConfig
from cee_gym.training.losses import loss_per_layer
from cee_gym.training.setup import Setup

ROLLOUTS, BATCH, ALPHA = 8, 32, 0.035


@dataclass
class Args:
    """Arguments.

    Attributes:
        models: the folder with minilm-l6-h384.
        data: the folder with mcid.
        epochs_of_a_phase: for the whole phase; the default of `cee-gym train` is about this many.
        repeats: epochs measured on the trace.
    """

    models: Path
    data: Path
    epochs_of_a_phase: int = 10
    repeats: int = 5


def main(args: Args) -> None:
    """Measures."""
    backbone = str(args.models / "minilm-l6-h384")
    config = RecordConfig(recipe="paper", pooling="mean")
    setup = Setup.load(get_task("mcid"), backbone, str(args.data / "mcid"), config)
    model = setup.initial_model().eval()
    text, data = setup.text["train"], setup.splits["train"]
    with TemporaryDirectory() as directory:
        start = time.perf_counter()
        trace = collect(model, text, data, Path(directory) / "train", setup.description("train"))
        collection = time.perf_counter() - start
        env = EarlyExitEnv(trace=trace, alpha=ALPHA, reward="paper")
        agent = Reinforce(rollouts=ROLLOUTS, batch_size=BATCH)
        network, problem = agent.prepare(env)
        assert problem is not None
        optimizer = agent.make_optimizer(network)
        rng = np.random.default_rng(0)

        def update(observations: torch.Tensor, rewards: torch.Tensor) -> None:
            step = agent.estimate(network(agent.states(observations)), rewards, rng)
            optimizer.zero_grad()
            step.loss.backward()
            optimizer.step()

        updates = len(text) // BATCH
        on_trace = []
        for _ in range(args.repeats):
            batches = Batches(problem, BATCH, rng)
            start = time.perf_counter()
            for _ in range(updates):
                _, observations, rewards = batches.next()
                update(observations, rewards)
            on_trace.append(time.perf_counter() - start)

        one_hot = torch.eye(model.num_layers)
        start = time.perf_counter()
        for rows in list(text.batches(np.arange(len(text)), BATCH, rng))[:updates]:
            copies = np.repeat(rows, ROLLOUTS)
            with torch.inference_mode():
                output = model(**text.batch(copies, model.device))
                losses = loss_per_layer(output.logits, text.labels[copies])
                layer = one_hot.expand(len(copies), -1, -1)
                observations = torch.cat([output.states, layer], dim=2)
                price = torch.from_numpy(problem.price[copies])
            update(observations[::ROLLOUTS].clone(), (-losses - ALPHA * price)[::ROLLOUTS].clone())
        without = time.perf_counter() - start
    epoch = float(np.median(on_trace))
    phase = collection + args.epochs_of_a_phase * epoch
    write(
        "policy_phase",
        {
            "task": "mcid",
            "backbone": "minilm-l6-h384",
            "instances": len(text),
            "rollouts": ROLLOUTS,
            "seconds": {
                "collection": collection,
                "epoch_on_trace_median": epoch,
                "epoch_on_trace": on_trace,
                "epoch_running_the_backbone": without,
            },
            "epoch_speedup": without / epoch,
            "epochs_of_a_phase": args.epochs_of_a_phase,
            "phase_speedup_with_collection": args.epochs_of_a_phase * without / phase,
            "one_epoch_speedup_with_collection": without / (collection + epoch),
        },
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
