"""One supervised training run of a multi-exit model.

The warm-up and every backbone phase are such a run.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from stable_baselines3.common.logger import Logger
from tqdm import tqdm

from cee_gym.backbones.encoding import EncodedText, Rows
from cee_gym.exits.classifier import MultiExitModel, MultiExitOutput
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
) -> None:
    """Trains the model in place; goes on after the last complete epoch of a run that was stopped.

    Every epoch draws its batches and dropout, and what the objective draws from torch's generator
    on the CPU, from `(seed, epoch)`, so a resumed run equals an uninterrupted one.

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
    """
    model.to(accelerator.device)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    steps_per_epoch = -(-len(rows) // config.batch_size)
    total = max(1, config.epochs * steps_per_epoch)
    start = 0 if checkpoint is None else _resume(checkpoint, parameters, optimizer)
    step = start * steps_per_epoch
    progress = tqdm(
        total=config.epochs * len(rows),
        initial=start * len(rows),
        desc=name,
        unit="text",
        leave=False,
    )
    was_training = model.training
    model.train()
    for epoch in range(start, config.epochs):
        rng = np.random.default_rng((seed, epoch))
        torch.manual_seed(int(rng.integers(2**63)))
        seen = torch.zeros(2, model.num_layers, device=accelerator.device)
        for batch in text.batches(rows, config.batch_size, rng):
            labels = text.labels[batch].to(accelerator.device)
            with accelerator.autocast():
                output = model(**text.batch(batch, accelerator.device))
            losses = loss_per_layer(output.logits, labels)
            accelerator.backward(objective(output, losses, labels, step + 1))
            torch.nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1 - step / total)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            correct = output.logits.argmax(dim=2) == labels[:, None]
            seen += torch.stack([losses.detach().sum(0), correct.sum(0)])
            progress.update(len(batch))
        if checkpoint is not None:
            _save(checkpoint, parameters, optimizer, epoch + 1)
        if logger is not None:
            loss, accuracy = (seen / len(rows)).cpu()
            for layer in range(model.num_layers):
                logger.record(f"{name}/loss_layer_{layer + 1:02d}", loss[layer].item())
                logger.record(f"{name}/accuracy_layer_{layer + 1:02d}", accuracy[layer].item())
            logger.dump(epochs_before + epoch + 1)
    progress.close()
    model.train(was_training)


def _save(
    checkpoint: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    epochs_done: int,
) -> None:
    tensors = {}
    for name, parameter in parameters.items():
        tensors[f"parameter.{name}"] = parameter.detach().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    unfinished = checkpoint.with_suffix(".partial")
    save_file(tensors, unfinished, metadata={"epochs_done": json.dumps(epochs_done)})
    os.replace(unfinished, checkpoint)


def _resume(
    checkpoint: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Loads the state after the last complete epoch; the number of epochs done."""
    if not checkpoint.exists():
        return 0
    from safetensors import safe_open

    with safe_open(checkpoint, framework="pt") as file:
        epochs_done = int(json.loads(file.metadata()["epochs_done"]))
    tensors = load_file(checkpoint)
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"parameter.{name}"])
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if f"{key}.{name}" in tensors:
                optimizer.state[parameter][key] = tensors[f"{key}.{name}"].to(
                    "cpu" if key == "step" and not parameter.is_cuda else parameter.device
                )
    return epochs_done
