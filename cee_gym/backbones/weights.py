"""Whether the weights that a model was loaded from are all of its own."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cee_gym.errors import BackboneError


def check_backbone_loaded(
    name_or_path: str | Path, backbone: PreTrainedModel, loaded: Mapping[str, Collection[Any]]
) -> None:
    """As `check_loaded`, but for poolers and the heads of other tasks, which may come or lack."""
    own = {name.partition(".")[0] for name in backbone.state_dict()} - {"pooler"}
    prefix = f"{backbone.base_model_prefix}."

    def counts(weight: str) -> bool:
        return weight.removeprefix(prefix).partition(".")[0] in own

    check_loaded(name_or_path, loaded, counts)


def check_loaded(
    name_or_path: str | Path,
    loaded: Mapping[str, Collection[Any]],
    counts: Callable[[str], bool] = lambda weight: True,
) -> None:
    """Refuses a model in which weights were made up, or for which weights were left over.

    Args:
        name_or_path: where the model is, for the message.
        loaded: what transformers tells of the loading (`output_loading_info`), sizes that differ
            having been let pass (`ignore_mismatched_sizes`).
        counts: whether a weight matters, by its name.

    Raises:
        BackboneError: naming the first such weight.
    """
    for what, weights in (
        ("missing", loaded["missing_keys"]),
        ("unexpected", loaded["unexpected_keys"]),
        ("of another size", [name for name, *_ in loaded["mismatched_keys"]]),
    ):
        if wrong := sorted(filter(counts, weights)):
            raise BackboneError(
                f"the weights at {name_or_path} do not fit its config.json: {len(wrong)} {what}, "
                f"the first of them {wrong[0]}"
            )
