"""What a policy comes to while the model runs: one parallel pass over texts under state copying."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.backbones.sequences import TokenSequences
from cee_gym.exits.forced import Leave, among, at_exits, forward_with_exits
from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.generation.decisions import policy_leave
from cee_gym.intervals import error_of_ratio
from cee_gym.policies.base import ExitPolicy
from cee_gym.progress import show_progress
from cee_gym.runs import kept_policies
from cee_gym.traces.recordings import open_split
from cee_gym.traces.tokens import TOKENS_AT_A_TIME


class LiveTexts(NamedTuple):
    """What the answers of N texts came to, summed over the tokens of each.

    Attributes:
        tokens: int64 `[N]`.
        right: float64 `[N]`, how many were what counts as right.
        loss: float64 `[N]`, of the text, in nats.
        depth: float64 `[N]`, layers run.
    """

    tokens: npt.NDArray[np.int64]
    right: npt.NDArray[np.float64]
    loss: npt.NDArray[np.float64]
    depth: npt.NDArray[np.float64]


def run_live(
    decoder: MultiExitDecoder,
    policy: ExitPolicy | None,
    text: TokenSequences,
    answers: npt.NDArray[np.integer[Any]],
    *,
    batch_size: int = 8,
) -> LiveTexts:
    """Runs the answers of some texts, each token only as deep as the policy lets it.

    Args:
        decoder: in eval mode.
        policy: at one speed; None for full depth.
        text: the texts.
        answers: integers, for each token of the answers what counts as right: the labels of a trace
            of the same texts.
        batch_size: texts at a time.
    """
    leave: Leave = (
        at_exits(torch.tensor(decoder.num_layers))
        if policy is None
        else policy_leave(decoder, policy)
    )
    counts = text.answer_tokens
    starts = np.cumsum(counts) - counts
    right, loss, depth = (np.zeros(len(text)) for _ in range(3))
    progress = show_progress(total=len(text), desc="live", unit="text")
    with torch.inference_mode(), progress:
        for rows in text.batches(np.arange(len(text)), batch_size):
            ids, decides = text.batch(rows).to(decoder.device), text.decides(rows)
            free = decides.to(ids.device)
            forced = forward_with_exits(decoder, ids, among(leave, free))
            exits, states = forced.exits[free], forced.left_with[free]
            gold = ids[:, 1:][free[:, :-1]]
            wanted = np.concatenate([answers[starts[r] : starts[r] + counts[r]] for r in rows])
            said, nats = _answers(decoder, states, exits, gold)
            owner = np.repeat(np.arange(len(rows)), counts[rows])
            layers = np.asarray(decoder.depths)[exits.cpu().numpy() - 1]
            for sums, values in ((right, said == wanted), (loss, nats), (depth, layers)):
                sums[rows] = np.bincount(owner, values.astype(float), len(rows))
            progress.update(len(rows))
    return LiveTexts(counts, right, loss, depth)


def measure_live(
    decoder: MultiExitDecoder,
    policy: ExitPolicy | None,
    text: TokenSequences,
    answers: npt.NDArray[np.integer[Any]],
) -> dict[str, Any]:
    """What `run_live` comes to.

    Returns:
        JSON-able: `tokens`, `agreement` with `answers` and its standard `error` over texts,
        `perplexity` of the text, `mean_exit_layer`, `saved_layers`.
    """
    found = run_live(decoder, policy, text, answers)
    tokens = int(found.tokens.sum())
    mean_depth = float(found.depth.sum() / tokens)
    return {
        "tokens": tokens,
        "agreement": float(found.right.sum() / tokens),
        "error": error_of_ratio(found.right, found.tokens),
        "perplexity": float(np.exp(found.loss.sum() / tokens)),
        "mean_exit_layer": mean_depth,
        "saved_layers": 1 - mean_depth / decoder.depths[-1],
    }


def live_points(
    weights: Path, recording: Path, split: str, policy: ExitPolicy, results: Mapping[str, Any]
) -> dict[str, Any]:
    """What full depth and every operating point of a report come to live; see `measure_live`.

    Args:
        weights: of the decoder.
        recording: with the texts of the split.
        split: to measure on.
        policy: at its own speed.
        results: of `cee_gym.evaluation.report.report`.
    """
    decoder = MultiExitDecoder.load(weights).eval()
    text = TokenSequences.load(recording / f"tokens-{split}.safetensors")
    answers = open_split(recording, split).labels
    held = kept_policies(policy, results["points"])
    return {
        "full_depth": measure_live(decoder, None, text, answers),
        **{name: measure_live(decoder, at, text, answers) for name, at in held.items()},
    }


def _answers(
    decoder: MultiExitDecoder, states: torch.Tensor, exits: torch.Tensor, gold: torch.Tensor
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """What each token is said to be at its exit, and the loss of the text there, `[n]`."""
    said, loss = torch.empty_like(gold), torch.empty(len(gold), device=gold.device)
    for start in range(0, len(gold), TOKENS_AT_A_TIME):
        part = slice(start, start + TOKENS_AT_A_TIME)
        logits = decoder.answer_each(states[part], exits[part]).float()
        said[part] = logits.argmax(dim=-1)
        loss[part] = torch.nn.functional.cross_entropy(logits, gold[part], reduction="none")
    return said.cpu().numpy(), loss.cpu().numpy()
