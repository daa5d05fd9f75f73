"""The classification tasks of GLUE (Wang et al. 2019), from the hub or from its own tsv files.

Its tsv files do not quote; CoLA's have no header, MRPC's have other column names, MNLI has two dev
splits, of which the matched one is taken. The labels of its test files are hidden.
"""

from cee_gym.tasks.base import Task

_NLI = ("entailment", "not_entailment")
_GLUE = "nyu-mll/glue"

TASKS = (
    Task(
        "rte",
        labels=_NLI,
        text="sentence1",
        pair="sentence2",
        hub=(_GLUE, "rte"),
        quoted=False,
    ),
    Task(
        "mrpc",
        labels=("not_equivalent", "equivalent"),
        text="sentence1",
        pair="sentence2",
        metrics=("f1", "accuracy"),
        hub=(_GLUE, "mrpc"),
        other_names={"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"},
        quoted=False,
    ),
    Task(
        "sst2",
        labels=("negative", "positive"),
        text="sentence",
        hub=(_GLUE, "sst2"),
        quoted=False,
    ),
    Task(
        "qnli",
        labels=_NLI,
        text="question",
        pair="sentence",
        hub=(_GLUE, "qnli"),
        quoted=False,
    ),
    Task(
        "qqp",
        labels=("not_duplicate", "duplicate"),
        text="question1",
        pair="question2",
        metrics=("f1", "accuracy"),
        hub=(_GLUE, "qqp"),
        other_names={"is_duplicate": "label"},
        quoted=False,
    ),
    Task(
        "mnli",
        labels=("entailment", "neutral", "contradiction"),
        text="premise",
        pair="hypothesis",
        hub=(_GLUE, "mnli"),
        dev_split="validation_matched",
        other_names={"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
        quoted=False,
    ),
    Task(
        "cola",
        labels=("unacceptable", "acceptable"),
        text="sentence",
        metrics=("matthews",),
        hub=(_GLUE, "cola"),
        header=("source", "label", "star", "sentence"),
        quoted=False,
    ),
)
