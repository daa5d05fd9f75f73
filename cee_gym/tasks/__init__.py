"""Tasks: where labelled text comes from.

A task of your own is one `Task` and one call of `register`:

>>> from cee_gym.tasks import Task, register
>>> register(Task("polite", labels=("rude", "polite"), text="sentence"))
"""

from cee_gym.tasks import clauses, glue, intent
from cee_gym.tasks.base import Task, get_task, register, task_names
from cee_gym.tasks.loading import load_splits

for _task in (*glue.TASKS, *intent.TASKS, clauses.TASK):
    register(_task)

__all__ = ["Task", "get_task", "load_splits", "register", "task_names"]
