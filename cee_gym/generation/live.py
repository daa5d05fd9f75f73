"""What a policy comes to while the model runs: one parallel pass over texts under state copying."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from cee_gym.backbones.tokens import TokenSequences
from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.generation.decisions import policy_leave
from cee_gym.generation.forced import Leave, among, at_exits, forward_with_exits
from cee_gym.policies.base import ExitPolicy
from cee_gym.traces.tokens import TOKENS_AT_A_TIME


def measure_live(
    decoder: MultiExitDecoder,
    policy: ExitPolicy | None,
    text: TokenSequences,
    answers: npt.NDArray[np.integer[Any]],
    *,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Runs the answers of some texts, each token only as deep as the policy lets it.

    Args:
        decoder: in eval mode.
        policy: at one speed; None for full depth.
        text: the texts.
        answers: integers `[N]`, for each token of the answers what counts as right: the labels of
            a trace of the same texts.
        batch_size: texts at a time.

    Returns:
        JSON-able: `tokens`, `agreement` with `answers` and its standard `error` over texts,
        `perplexity` of the text, `mean_exit_layer`, `saved_layers`.
    """
    leave: Leave = (
        at_exits(torch.tensor(decoder.num_layers))
        if policy is None
        else policy_leave(decoder, policy)
    )
    counts = text.answer_tokens
    starts = np.cumsum(counts) - counts
    right, loss, depth = (np.zeros(len(text)) for _ in range(3))
    progress = tqdm(total=len(text), desc="live", unit="text", leave=False)
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
    tokens = int(counts.sum())
    agreement, mean_depth = right.sum() / tokens, depth.sum() / tokens
    return {
        "tokens": tokens,
        "agreement": float(agreement),
        "error": error_of_ratio(right, counts),
        "perplexity": float(np.exp(loss.sum() / tokens)),
        "mean_exit_layer": float(mean_depth),
        "saved_layers": float(1 - mean_depth / decoder.depths[-1]),
    }


def error_of_ratio(sums: npt.NDArray[np.floating], counts: npt.NDArray[np.integer[Any]]) -> float:
    """The standard error of `sum(sums) / sum(counts)`, where texts are drawn, not tokens.

    By the delta method (Cochran 1977, section 6.4).

    Args:
        sums: `[N]`, of a number over the tokens of each text.
        counts: `[N]`, how many tokens.
    """
    ratio = sums.sum() / counts.sum()
    residuals = sums - ratio * counts
    return float(residuals.std(ddof=1) * len(sums) ** 0.5 / counts.sum()) if len(sums) > 1 else 0.0


def _answers(
    decoder: MultiExitDecoder, states: torch.Tensor, exits: torch.Tensor, gold: torch.Tensor
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """What each token is said to be at its exit, and the loss of the text there, `[n]`."""
    said, loss = torch.empty_like(gold), torch.empty(len(gold), device=gold.device)
    for exit in exits.unique().tolist():
        own = (exits == exit).nonzero()[:, 0]
        for part in own.split(TOKENS_AT_A_TIME):
            logits = decoder.answer(states[part], exit).float()
            said[part] = logits.argmax(dim=-1)
            loss[part] = torch.nn.functional.cross_entropy(logits, gold[part], reduction="none")
    return said.cpu().numpy(), loss.cpu().numpy()
