"""The README of a model on the hub."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from cee_gym.exits.classifier import MultiExitModel
from cee_gym.policies.base import ExitPolicy

_READS = {
    "shared": "a tanh pooler that all layers share",
    "per_layer": "a tanh pooler for each layer",
    "scaled": "the standardised state of the layer",
}
_CARD = """---
{front}
---

# {name}

This text classifier has a classifier after every layer. An exit policy decides at each layer
whether a text leaves there or runs the next layer. It was trained with cee-gym.

| | |
|---|---|
| task | {task} |
| labels | {labels} |
| model | {backbone} with {layers} layers, {width} wide |
| exits | one after each layer; each reads {reads}, taken from {pooling} |
| confidences | {calibrated} |
| longest text | {max_tokens} tokens; longer texts are cut |
| exit policy | {policy} |

## Use

```python
from cee_gym.inference import EarlyExitPipeline

pipeline = EarlyExitPipeline.from_pretrained("{name}")
pipeline({example})
# [{{"label": ..., "score": ..., "exit_layer": ...}}]
```

## Measured

{measured}
"""


def model_card(
    name: str,
    model: MultiExitModel,
    exit_policy: ExitPolicy,
    evaluation: Mapping[str, Any] | None,
) -> str:
    """A model card, in Markdown with YAML front matter.

    Args:
        name: what the model is loaded by.
        model: with the name of its task, if it has one.
        exit_policy: at its speed.
        evaluation: see `cee_gym.inference.pretrained.Measured`.
    """
    config = model.config
    task = config.task
    front = ModelCardData(
        library_name="cee-gym",
        pipeline_tag="text-classification",
        tags=["early-exit", *([f"task:{task}"] if task else [])],
    )
    reads = ", ".join(exit_policy.observe)
    policy = (
        f"{exit_policy.name}; it reads {reads}, and a text leaves where its score is above "
        f"{exit_policy.threshold:.4g}"
    )
    if exit_policy.alpha is not None:
        policy += f"; the price of a layer is {exit_policy.alpha:.4g}"
    return _CARD.format(
        front=front.to_yaml(),
        name=name,
        task=task or "not recorded",
        labels=", ".join(model.labels),
        backbone=type(model.backbone).__name__,
        layers=model.num_layers,
        width=model.width,
        reads=_READS[config.pooler],
        calibrated="calibrated: each exit has a temperature, fitted on rows it was not trained on"
        if config.temperatures
        else "not calibrated",
        pooling="the first token" if config.pooling == "first" else "the mean over all tokens",
        max_tokens=config.max_tokens,
        policy=policy,
        example='{"text": "...", "text_pair": "..."}' if config.pair else '"..."',
        measured=_measured(evaluation),
    )


def _measured(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "Not measured."
    points = {"full depth": evaluation["full_depth"], "early exit": evaluation["early_exit"]}
    names = [name for name in evaluation["full_depth"]["metrics"] if name != "accuracy"]
    lines = [
        "| | " + " | ".join(["accuracy", *names, "mean exit layer", "saved layers"]) + " |",
        "|" + "---|" * (len(names) + 4),
    ]
    for name, point in points.items():
        values = [point["accuracy"], *(point["metrics"][metric] for metric in names)]
        cells = [name, *(f"{value:.3f}" for value in values)]
        cells += [f"{point['mean_exit_layer']:.2f}", f"{point['saved_layers']:.1%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + (
        f"\n\nOn {evaluation['rows']} texts of the {evaluation['split']} split. Saved layers are a "
        "share of the layers, not of time."
    )
