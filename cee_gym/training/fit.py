"""One supervised training run of a multi-exit model.

The warm-up and every backbone phase are such a run.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from stable_baselines3.common.logger import Logger

from cee_gym import processes
from cee_gym.backbones.encoding import EncodedText, Rows
from cee_gym.documents import written_whole
from cee_gym.errors import CeeGymError
from cee_gym.exits.classifier import MultiExitModel, MultiExitOutput
from cee_gym.progress import say, show_progress
from cee_gym.training.config import FitConfig
from cee_gym.training.losses import loss_per_layer

# From what the model gives for a batch, its losses [B, L] and labels [B], and the number of the
# step, which counts from 1 through all epochs, to the scalar to descend.
Objective = Callable[[MultiExitOutput, torch.Tensor, torch.Tensor, int], torch.Tensor]


def fit(
    model: MultiExitModel,
    text: EncodedText,
    rows: Rows,
    objective: Objective,
    config: FitConfig,
    *,
    accelerator: Accelerator,
    seed: int,
    checkpoint: Path | None,
    name: str,
    logger: Logger | None = None,
    epochs_before: int = 0,
    warmup_ratio: float = 0.0,
    watched: Rows | None = None,
) -> None:
    """Trains the model in place; goes on after the last complete epoch of a run that was stopped.

    Every epoch draws its batches and dropout, and what the objective draws from torch's generator
    on the CPU, from `(seed, epoch)`, so a resumed run equals an uninterrupted one.

    Several processes share out every batch, so that an update is of the same rows as in one. Each
    draws its own dropout, and its own exits where the objective draws them.

    Parameters that do not require gradients are no part of it: they stay what they are, and are in
    no checkpoint. Dropout is on everywhere, before frozen layers too, as in DeeBERT's second stage.

    Args:
        model: moved to the accelerator's device.
        text: what `rows` are positions in.
        rows: to train on.
        objective: what to descend, per batch.
        config: how long and how fast.
        accelerator: its device and precision are used.
        seed: of batches and dropout.
        checkpoint: a file for the state after each epoch, removed by the caller; None keeps none.
        name: of the run, for progress bar and logger.
        logger: takes loss and accuracy per layer after each epoch, under `name/`.
        epochs_before: of earlier runs of this name, after which its curves go on.
        warmup_ratio: where `config` leaves it open.
        watched: rows of the same text it is not trained on: loss and accuracy of the exits there
            are printed in a line after each epoch and go to the logger, under
            `name/calibration_`.
    """
    model.to(accelerator.device)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    steps_per_epoch = -(-len(rows) // config.batch_size)
    total = max(1, config.epochs * steps_per_epoch)
    given = config.warmup_ratio
    rising = max(1.0, total * (warmup_ratio if given is None else given))
    start = 0 if checkpoint is None else resume_checkpoint(checkpoint, parameters, optimizer)
    check_same_start(start)
    step = start * steps_per_epoch
    progress = show_progress(
        total=config.epochs * len(rows),
        initial=start * len(rows),
        desc=name,
        unit="text",
    )
    was_training = model.training
    model.train()
    for epoch in range(start, config.epochs):
        rng = np.random.default_rng((seed, epoch))
        torch.manual_seed(int(rng.integers(2**63)) + processes.index())
        seen = torch.zeros(2, model.num_layers, device=accelerator.device)
        for batch in text.batches(rows, config.batch_size, rng):
            own, counts = processes.share(batch)
            labels = text.labels[own].to(accelerator.device)
            with accelerator.autocast():
                output = model(**text.batch(own, accelerator.device))
            losses = loss_per_layer(output.logits, labels)
            accelerator.backward(objective(output, losses, labels, step + 1))
            processes.sum_gradients(parameters, counts * len(own) / len(batch))
            torch.nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm)
            for group in optimizer.param_groups:
                rise = min(1.0, (step + 1) / rising)
                group["lr"] = config.learning_rate * rise * (1 - step / total)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            correct = output.logits.argmax(dim=2) == labels[:, None]
            seen += counts * torch.stack([losses.detach().sum(0), correct.sum(0)])
            progress.update(len(batch))
        if checkpoint is not None and processes.is_main():
            save_checkpoint(checkpoint, parameters, optimizer, epoch + 1)
        curves = {"": (processes.total(seen) / len(rows)).cpu()}
        if watched is not None and processes.is_main():
            curves["calibration_"] = watch = _watch(model, text, watched)
            say(f"{name} epoch {epoch + 1} of {config.epochs}, {_line(watch)}")
        if logger is not None:
            for prefix, (loss, accuracy) in curves.items():
                for layer in range(model.num_layers):
                    of_layer = f"layer_{layer + 1:02d}"
                    logger.record(f"{name}/{prefix}loss_{of_layer}", loss[layer].item())
                    logger.record(f"{name}/{prefix}accuracy_{of_layer}", accuracy[layer].item())
            logger.dump(epochs_before + epoch + 1)
    progress.close()
    model.train(was_training)


def _watch(model: MultiExitModel, text: EncodedText, rows: Rows) -> torch.Tensor:
    """Mean loss and accuracy of each exit on some rows, `[2, L]`."""
    logits = all_logits(model, text, rows)
    labels = text.labels[rows]
    loss = loss_per_layer(logits, labels)
    return torch.stack([loss.mean(0), (logits.argmax(2) == labels[:, None]).float().mean(0)])


def _line(curve: torch.Tensor) -> str:
    """The first, the middle and the last exit in a line."""
    depth = curve.shape[1]
    layers = sorted({1, (depth + 1) // 2, depth})
    loss, accuracy = (
        " ".join(f"{of[layer - 1]:.3f}" for layer in layers) for of in (curve[0], curve[1])
    )
    numbers = ", ".join(map(str, layers))
    return f"on calibration at layers {numbers}: loss {loss}, accuracy {accuracy}"


def all_logits(model: MultiExitModel, text: EncodedText, rows: Rows) -> torch.Tensor:
    """The logits of all exits on some rows, float32 `[N, L, C]` on the CPU.

    Args:
        model: is run in eval mode on its own device.
        text: what `rows` are positions in.
        rows: N of them, each once.
    """
    was_training = model.training
    model.eval()
    place = np.full(len(text), -1)
    place[rows] = np.arange(len(rows))
    found = torch.empty(len(rows), model.num_layers, model.num_labels)
    with torch.inference_mode():
        for batch in text.batches(rows, 64):
            found[place[batch]] = model(**text.batch(batch, model.device)).logits.float().cpu()
    model.train(was_training)
    return found


def check_same_start(done: int) -> None:
    """Refuses to go on from other work than the main process does.

    Raises:
        CeeGymError: if it found another checkpoint.
    """
    if done != (of_main := processes.agree(done)):
        raise CeeGymError(
            f"process {processes.index()} found {done} done where the main one found {of_main}: "
            "the output must be on a file system that all machines share"
        )


def save_checkpoint(
    checkpoint: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    done: int,
) -> None:
    """Writes parameters and the optimizer's state, whole or not at all; `done` counts the work."""
    tensors = {}
    for name, parameter in parameters.items():
        tensors[f"parameter.{name}"] = parameter.detach().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(checkpoint) as unfinished:
        save_file(tensors, unfinished, metadata={"done": json.dumps(done)})


def resume_checkpoint(
    checkpoint: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Loads what `save_checkpoint` wrote, if anything; how much was done."""
    if not checkpoint.exists():
        return 0
    from safetensors import safe_open

    with safe_open(checkpoint, framework="pt") as file:
        done = int(json.loads(file.metadata()["done"]))
    tensors = load_file(checkpoint)
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"parameter.{name}"])
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if f"{key}.{name}" in tensors:
                optimizer.state[parameter][key] = tensors[f"{key}.{name}"].to(
                    "cpu" if key == "step" and not parameter.is_cuda else parameter.device
                )
    return done
