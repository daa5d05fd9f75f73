"""The texts of tasks that are built in."""

from functools import cache

from cee_gym.tasks.base import get_task, task_names
from cee_gym.tasks.loading import load_splits


@cache
def built_in_texts(task: str) -> dict[str, str] | None:
    """The texts of all splits by row id; None where the task is not built in.

    Args:
        task: its name.
    """
    if task not in task_names() or get_task(task).built_in is None:
        return None
    found: dict[str, str] = {}
    for data in load_splits(get_task(task), None).values():
        found |= dict(zip(data["row_id"], data["text"], strict=True))
    return found
