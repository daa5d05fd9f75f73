"""The phases of ConsistentEE for a decoder whose every token is an instance.

    warm up:   text -> decoder with trained exits
    record:    decoder -> traces of train (the texts the policy learns on), calibration, dev
    backbone:  decoder, policy -> decoder trained at the exits of the policy, under state copying

They are those of `cee_gym.training.phases` in their order and files.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from torch.nn import functional

from cee_gym import processes
from cee_gym.backbones.sequences import Rows, TokenSequences
from cee_gym.documents import publish, read_document, write_document
from cee_gym.errors import CeeGymError
from cee_gym.exits.forced import Leave, among, forward_with_exits
from cee_gym.exits.lm_head import MultiExitDecoder, has_exits
from cee_gym.generation.decisions import policy_leave
from cee_gym.policies.base import ExitPolicy
from cee_gym.progress import say, show_progress
from cee_gym.traces.recordings import RECORDING
from cee_gym.traces.tokens import TOKENS_AT_A_TIME, collect_tokens
from cee_gym.training.config import AlternationConfig, FitConfig
from cee_gym.training.fit import check_same_start, resume_checkpoint, save_checkpoint
from cee_gym.training.partition import DEPLOYED
from cee_gym.training.phases import RECIPE
from cee_gym.training.tensorboard import BACKBONE, WARM_UP
from cee_gym.training.token_setup import TokenSetup

UPDATES_A_CHECKPOINT = 100
WARMUP = 0.05
HELD = 10.0  # weight of the last layer at full depth beside the exits that are taken
# From token ids [B, T], who decides, bool [B, T], and the number of the update, from 1, to the mean
# loss, whose gradients are added.
Descend = Callable[[torch.Tensor, torch.Tensor, int], float]


def warm_up(setup: TokenSetup, models: Path, logger: Logger | None = None) -> None:
    """Trains the adapters of all exits at full depth; the backbone stays as it is.

    A decoder that has exits already is only copied.

    Args:
        setup: the text, the decoder and how.
        models: where it is to be.
        logger: takes the loss.
    """
    checkpoint = _checkpoint(models)
    if processes.agree(models.exists()):
        _remove(checkpoint)  # of a process that was killed at its very end
        return
    decoder = setup.initial_model()
    made: dict[str, Any] = {}
    if not has_exits(setup.backbone) and setup.tokens.adapter_rank:
        shares, text = setup.shares, setup.text["train"]
        made = {"loss": setup.tokens.loss, "tokens": int(text.answer_tokens[shares.fit].sum())}
        parameters = {f"adapters.{n}": p for n, p in decoder.adapters.named_parameters()}
        fit_tokens(
            decoder,
            parameters,
            text,
            shares.fit,
            _adapter_descent(decoder, setup.tokens.loss),
            setup.tokens.adapters,
            seed=setup.config.seed,
            checkpoint=checkpoint,
            name=f"{WARM_UP}/adapters",
            logger=logger,
        )
    processes.once(lambda: _save(setup, decoder, models, made))
    _remove(checkpoint)


def backbone_phase(
    setup: TokenSetup,
    before: Path,
    models: Path,
    policy: ExitPolicy,
    config: AlternationConfig,
    number: int,
    logger: Logger | None = None,
) -> None:
    """Trains the decoder at the exits of the policy under state copying.

    The loss is the divergence from the untouched model at each token's exit, plus that of the last
    layer at full depth, which holds the model where it was, and of one exit more in turn. The
    policy stays as it is.

    Args:
        setup: the text and how.
        before: the decoder to go on from.
        models: where it is to be.
        policy: decides the exits.
        config: how long.
        number: of the round.
        logger: takes the loss.
    """
    checkpoint = _checkpoint(models)
    if processes.agree(models.exists()):
        _remove(checkpoint)  # of a process that was killed at its very end
        return
    decoder, reference = MultiExitDecoder.load(before / DEPLOYED), setup.initial_model().eval()
    leave = policy_leave(decoder, policy)
    merge = _add_lora(decoder, setup.tokens.lora_rank)
    parameters = {name: p for name, p in decoder.named_parameters() if p.requires_grad}
    fit_tokens(
        decoder,
        parameters,
        setup.text["train"],
        setup.shares.fit,
        _copying_descent(decoder, reference, leave, setup.tokens.loss),
        config.backbone_phase,
        seed=setup.config.seed + number,
        checkpoint=checkpoint,
        name=f"{BACKBONE}/copying",
        logger=logger,
    )
    merge()
    made = read_document(before / RECIPE, "recipe", remedy="make the models again")
    processes.once(lambda: _save(setup, decoder, models, {**made, "rounds": number}))
    _remove(checkpoint)


def record(
    setup: TokenSetup, models: Path, recording: Path, policy: ExitPolicy | None = None
) -> None:
    """Traces what the exits say of every token of the answers.

    Args:
        setup: the text and how.
        models: the decoder.
        recording: where the traces are to be.
        policy: under whose exits, by state copying, it is recorded; None for full depth.
    """
    if processes.agree(recording.exists()):
        return
    unfinished = recording.with_name(f"{recording.name}.partial")
    unfinished.mkdir(parents=True, exist_ok=True)
    decoder = MultiExitDecoder.load(models / DEPLOYED).eval()
    made = read_document(models / RECIPE, "recipe", remedy="make the models again")
    reference = setup.initial_model().eval() if made.get("rounds") else None
    if policy is not None:
        policy = policy.of_another_model()  # the weights have moved on since
    shares = setup.shares
    for split, source, rows in (
        ("calibration", "train", shares.calibration),
        ("dev", "dev", np.arange(len(setup.splits["dev"]))),
        ("train", "train", shares.policy),
    ):
        text = setup.text[source].take(rows)
        if processes.is_main():
            text.save(unfinished / f"tokens-{split}.safetensors")
        if not processes.agree((unfinished / split).exists()):
            collect_tokens(
                decoder,
                text,
                [setup.splits[source][row].row_id for row in rows],
                unfinished / split,
                setup.description(split),
                reference=reference,
                gold=setup.tokens.target == "gold",
                leave=None if policy is None else policy_leave(decoder, policy),
                dtype=setup.config.states,
            )
    fitted = [setup.splits["train"][row].row_id for row in shares.fit]
    description = {
        "task": setup.task.to_json(),
        "backbone": Path(setup.backbone).name,
        "config": setup.to_json(),
        "fitted_to": {DEPLOYED: fitted},
        "under": None if policy is None else policy.description(),
        "made": made,
    }

    def finish() -> None:
        write_document(unfinished / RECORDING, description)
        publish(unfinished, recording)

    processes.once(finish)


def fit_tokens(
    decoder: MultiExitDecoder,
    parameters: Mapping[str, torch.nn.Parameter],
    text: TokenSequences,
    rows: Rows,
    descend: Descend,
    config: FitConfig,
    *,
    seed: int,
    checkpoint: Path,
    name: str,
    logger: Logger | None = None,
) -> None:
    """Descends a loss over the tokens of some answers, by AdamW with linear decay.

    Goes on from its checkpoint, which is written every hundred updates. Several processes share out
    every batch, so that an update is of the same texts as in one.

    Args:
        decoder: what is trained.
        parameters: those that are.
        text: what `rows` are positions in.
        rows: to train on.
        descend: adds the gradients of a batch.
        config: how long and how fast.
        seed: of the batches.
        checkpoint: removed by the caller.
        name: for progress bar and logger.
        logger: takes the loss.
    """
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    total = config.epochs * -(-len(rows) // config.batch_size)
    done = resume_checkpoint(checkpoint, dict(parameters), optimizer)
    check_same_start(done)
    rising = max(1.0, total * (WARMUP if config.warmup_ratio is None else config.warmup_ratio))
    tokens = int(text.answer_tokens[rows].sum())
    progress = show_progress(total=config.epochs * tokens, desc=name, unit="token")
    decoder.eval()  # small language models are trained without dropout
    update, recent = 0, list[float]()
    for epoch in range(config.epochs):
        rng = np.random.default_rng((seed, epoch))
        for batch in text.batches(rows, config.batch_size, rng):
            update += 1
            progress.update(int(text.answer_tokens[batch].sum()))
            if update <= done:
                continue
            own, counts = processes.share(batch)
            ids = text.batch(own).to(decoder.device)
            loss = descend(ids, text.decides(own).to(decoder.device), update)
            tokens_here, in_all = (int(text.answer_tokens[of].sum()) for of in (own, batch))
            weight = counts * tokens_here / in_all
            processes.sum_gradients(parameters, weight)
            recent.append(loss * weight)
            torch.nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(update / rising, 1.0)
                group["lr"] *= 1 - (update - 1) / total
            optimizer.step()
            optimizer.zero_grad()
            if update % UPDATES_A_CHECKPOINT == 0 and processes.is_main():
                checkpoint.parent.mkdir(parents=True, exist_ok=True)
                save_checkpoint(checkpoint, dict(parameters), optimizer, update)
        if recent:
            mean = float(processes.total(torch.tensor(np.mean(recent))))
            count = f"epoch {epoch + 1} of {config.epochs}"
            say(f"{name} {count}, mean loss {mean:.4f}")
            if logger is not None:
                logger.record(f"{name}/loss", mean)
                logger.dump(epoch + 1)
            recent.clear()
    progress.close()


def _adapter_descent(decoder: MultiExitDecoder, loss: str) -> Descend:
    """The loss of all exits but the last, each in parts that fit into memory."""
    decoder.backbone.requires_grad_(False)

    def descend(ids: torch.Tensor, decides: torch.Tensor, _: int) -> float:
        with torch.no_grad():
            states = [of_exit[decides] for of_exit in decoder(ids)]
        gold, count = ids[:, 1:][decides[:, :-1]], int(decides.sum())
        total = 0.0
        for start in range(0, count, TOKENS_AT_A_TIME):
            part = slice(start, start + TOKENS_AT_A_TIME)
            with torch.no_grad():
                full = decoder.read(states[-1][part]).float().log_softmax(dim=-1)
            for exit in range(1, decoder.num_layers):
                logits = decoder.answer(states[exit - 1][part], exit).float()
                one = _loss(logits, full, gold[part], loss) / count / (decoder.num_layers - 1)
                one.backward()
                total += one.item()
        return total

    return descend


def _copying_descent(
    decoder: MultiExitDecoder, reference: MultiExitDecoder, leave: Leave, loss: str
) -> Descend:
    """The loss at each token's exit under copying, and those of exits at full depth."""

    def descend(ids: torch.Tensor, decides: torch.Tensor, update: int) -> float:
        with torch.no_grad():
            full = reference.read(reference(ids)[-1][decides]).float().log_softmax(dim=-1)
        gold, count = ids[:, 1:][decides[:, :-1]], int(decides.sum())
        forced = forward_with_exits(decoder, ids, among(leave, decides))
        states, exits = forced.left_with[decides], forced.exits[decides]
        shown = [of_exit[decides] for of_exit in decoder(ids)]
        held = decoder.read(shown[-1]).float()
        total = HELD * _loss(held, full, gold, "kl") / count
        # One of the other exits in turn, lest those that the policy seldom takes fall behind.
        turn = 1 + (update - 1) % (decoder.num_layers - 1)
        total = (
            total + _loss(decoder.answer(shown[turn - 1], turn).float(), full, gold, loss) / count
        )
        left_with = decoder.answer_each(states, exits).float()
        total = total + _loss(left_with, full, gold, loss) / count
        total.backward()
        return total.item()

    return descend


def _loss(logits: torch.Tensor, full: torch.Tensor, gold: torch.Tensor, loss: str) -> torch.Tensor:
    """The sum over tokens of the cross-entropy with the text, or of the divergence from `full`.

    Args:
        logits: `[n, C]` of an exit.
        full: logarithms of the probabilities that the full model gives, `[n, C]`.
        gold: int64 `[n]`.
        loss: `"kl"` or `"cross_entropy"`.
    """
    if loss == "cross_entropy":
        return functional.cross_entropy(logits, gold, reduction="sum")
    return functional.kl_div(logits.log_softmax(dim=-1), full, log_target=True, reduction="sum")


def _add_lora(decoder: MultiExitDecoder, rank: int) -> Callable[[], None]:
    """Puts LoRA on all linear maps of the layers; what is returned merges it into the weights.

    Raises:
        CeeGymError: if peft is not installed.
    """
    if not rank:
        decoder.requires_grad_(True)
        return lambda: None
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise CeeGymError(
            'lora_rank needs peft: pip install "cee-gym[generation]", or leave it out'
        ) from None
    backbone: Any = decoder.backbone
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    wrapped = get_peft_model(backbone, config)
    decoder.adapters.requires_grad_(True)

    def merge() -> None:
        wrapped.merge_and_unload()
        decoder.requires_grad_(True)

    return merge


def _checkpoint(models: Path) -> Path:
    return models.with_name(f"{models.name}.checkpoint.safetensors")


def _remove(checkpoint: Path) -> None:
    if processes.is_main():
        checkpoint.unlink(missing_ok=True)


def _save(setup: TokenSetup, decoder: MultiExitDecoder, models: Path, made: dict[str, Any]) -> None:
    unfinished = models.with_name(f"{models.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    decoder.save_pretrained(unfinished / DEPLOYED)
    setup.tokenizer.save_pretrained(unfinished / DEPLOYED)
    write_document(unfinished / RECIPE, made)
    publish(unfinished, models)
