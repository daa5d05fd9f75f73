"""Tasks: where labelled text comes from.

A task of your own is one `Task` and one call of `register_task`:

>>> from cee_gym.tasks import Task, register_task
>>> task = register_task(Task("manners", labels=("rude", "polite"), text="sentence"))

`own_task` makes one of the columns alone.
"""

from cee_gym.tasks import clauses, glue, intent
from cee_gym.tasks.base import Task, get_task, register_task, task_names
from cee_gym.tasks.loading import load_splits
from cee_gym.tasks.own import own_task

for _task in (*glue.TASKS, *intent.TASKS, clauses.TASK):
    register_task(_task)

__all__ = ["Task", "get_task", "load_splits", "own_task", "register_task", "task_names"]
