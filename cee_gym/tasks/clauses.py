"""Clauses: a small made-up language whose sentences have a known difficulty.

A sentence asks for the opinion of one person and then lists, in random order, one clause for each
of several people::

    about ben : carol agrees with ivan . laura was bored . ben opposes carol . ivan loved it .
    emma doubts carol .

Some people say outright what they think ("ivan loved it"), the others only refer to somebody else
("carol agrees with ivan" keeps the opinion, "ben opposes carol" turns it around). Here Ivan is
positive, so Carol is positive, so Ben, who was asked about, is negative: the label is 0.

The **difficulty** of a sentence is the number of references to follow from the person asked about
to a person with an opinion of their own: 0 where the answer is said outright, 2 in the example.
Nothing in a transformer's architecture ties a reference to a layer, but a model has to finish one
reference before it can use it for the next, so deeper layers can solve harder sentences. Easy
sentences are the most frequent (see `FREQUENCIES`), as early exit expects of its inputs.

Guessing from the surface does not help:

* labels are a fair coin at every difficulty;
* of the people with an opinion of their own exactly one is positive and one is negative, so
  counting adjectives says nothing;
* every reference keeps or turns with probability one half, wherever it stands, and at least one
  reference in every sentence has nothing to do with the question, so counting those says nothing
  either;
* clauses are shuffled, and each person has exactly one.

One sentence in five cannot be answered: no clause is about the person asked about, and the label is
a fair coin. A model is as unsure of these as early layers are of a difficult sentence, but depth
does not help it. So confidence alone cannot tell what is worth waiting for; the states can, as
they show whether the person is there.

`sentences` is a pure function of its arguments. The shipped model was trained on the seeds from
`TRAINING_SEED` on (below `TRAINING_SEED + 1000`); use other seeds for data of your own. There are
so many sentences (even of the shortest kind more than ten thousand million) that two seeds
practically never share one, so splits are disjoint without any filtering.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cee_gym.tasks.base import Task

LABELS: Final = ("negative", "positive")
"""Names of the two labels, in the order of their numbers."""

FREQUENCIES: Final = (0.28, 0.20, 0.15, 0.12, 0.09, 0.07, 0.05, 0.04)
"""Share of each difficulty, 0 to 7, among the sentences."""

MAX_CLAUSES: Final = 10
"""Most clauses in a sentence."""

UNANSWERED: Final = 0.2
"""Share of sentences that cannot be answered."""

NO_ANSWER: Final = -1
"""The difficulty of a sentence that cannot be answered."""

TRAINING_SEED: Final = 710_000
"""First of the thousand seeds kept for training the shipped model."""

SPECIAL_TOKENS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NAMES: Final = (
    *("anna", "ben", "carol", "david", "emma", "frank", "grace", "henry"),
    *("ivan", "julia", "kevin", "laura", "maria", "nina", "oscar", "paul"),
)
QUESTIONS: Final = ("about", "regarding", "concerning")
NEGATIVE: Final = ("hated it", "disliked it", "was bored", "was annoyed", "felt cheated")
POSITIVE: Final = ("loved it", "enjoyed it", "was amused", "was thrilled", "felt happy")
KEEPS: Final = ("agrees with", "sides with", "supports", "echoes", "follows")
TURNS: Final = ("disagrees with", "argues with", "opposes", "contradicts", "doubts")

VOCABULARY: Final[tuple[str, ...]] = SPECIAL_TOKENS + tuple(
    sorted(
        {":", "."}.union(
            NAMES,
            QUESTIONS,
            *(phrase.split() for phrase in NEGATIVE + POSITIVE + KEEPS + TURNS),
        )
    )
)
"""Every word of the language, after the special tokens of BERT."""


@dataclass(frozen=True)
class Sentence:
    """One sentence with its answer and the reasoning behind it.

    Attributes:
        text: Lower-case words separated by single blanks.
        label: 0 (negative) or 1 (positive).
        difficulty: Number of references to follow; -1 where nothing leads to an answer.
        subjects: Position, among the words, of the person whom each clause is about.
        opinions: Opinion (0 or 1) of each of these people.
    """

    text: str
    label: int
    difficulty: int
    subjects: tuple[int, ...]
    opinions: tuple[int, ...]


def generate(
    n: int,
    seed: int,
    frequencies: tuple[float, ...] = FREQUENCIES,
    max_clauses: int = MAX_CLAUSES,
    turning: float = 0.5,
    unanswered: float = UNANSWERED,
) -> list[Sentence]:
    """Make sentences with all that is known about them.

    Args:
        n: Number of sentences.
        seed: Seed of the random generator; the same arguments give the same sentences.
        frequencies: Share of each difficulty, from 0 on; they are scaled to a sum of one.
        max_clauses: Most clauses in a sentence, at least three more than the largest difficulty.
        turning: Probability that a reference turns the opinion around. Anything but one half
            makes the task easier to guess, which helps as a first lesson of a training.
        unanswered: Share of sentences that cannot be answered.

    Returns:
        The sentences, in random order.
    """
    if max_clauses < max(4, len(frequencies) + 2):
        raise ValueError(f"{max_clauses} clauses are too few for {len(frequencies)} difficulties")
    rng = np.random.default_rng(seed)
    shares = np.asarray(frequencies, dtype=np.float64)
    difficulties = rng.choice(len(shares), size=n, p=shares / shares.sum())
    return [_sentence(int(d), max_clauses, turning, unanswered, rng) for d in difficulties]


def sentences(n: int, seed: int) -> dict[str, list[Any]]:
    """Make sentences as columns of texts, labels and difficulties.

    Args:
        n: Number of sentences.
        seed: Seed of the random generator.

    Returns:
        The columns "text", "label" and "difficulty", each with `n` entries.
    """
    made = generate(n, seed)
    return {
        "text": [s.text for s in made],
        "label": [s.label for s in made],
        "difficulty": [s.difficulty for s in made],
    }


SPLITS: Final = {"train": (6000, 0), "dev": (2000, 1)}
"""Size and seed of each split."""


def splits() -> dict[str, dict[str, list[Any]]]:
    """The splits of the task, as columns, see `sentences`."""
    return {split: sentences(n, seed) for split, (n, seed) in SPLITS.items()}


TASK = Task("clauses", labels=LABELS, text="text", built_in=splits)


def _sentence(
    difficulty: int, max_clauses: int, turning: float, unanswered: float, rng: np.random.Generator
) -> Sentence:
    """Make one sentence.

    People are numbered: 0 is asked about, refers to 1, who refers to 2, and so on until number
    `difficulty`, who has an opinion; the next one has the opposite opinion; all others refer to
    anybody before them. Where there is to be no answer, somebody without a clause is asked about
    in the place of 0.
    """
    people = int(rng.integers(max(4, difficulty + 3), max_clauses + 1))
    label = int(rng.integers(2))
    turns = [int(coin < turning) for coin in rng.random(people)]
    source = difficulty
    opinion = [0] * people
    opinion[source] = (label + sum(turns[:difficulty])) % 2
    opinion[source + 1] = 1 - opinion[source]
    refers_to = [i + 1 for i in range(difficulty)] + [-1, -1]
    for i in reversed(range(difficulty)):
        opinion[i] = (opinion[i + 1] + turns[i]) % 2
    for i in range(difficulty + 2, people):
        other = int(rng.integers(0, i))
        refers_to.append(other)
        opinion[i] = (opinion[other] + turns[i]) % 2

    names = [NAMES[i] for i in rng.permutation(len(NAMES))]
    asked = 0
    if unanswered and rng.random() < unanswered:
        asked, difficulty, label = people, NO_ANSWER, int(rng.integers(2))
    words = [QUESTIONS[int(rng.integers(len(QUESTIONS)))], names[asked], ":"]
    subjects, opinions = [], []
    for i in rng.permutation(people).tolist():
        subjects.append(len(words))
        opinions.append(opinion[i])
        if refers_to[i] < 0:
            phrases = POSITIVE if opinion[i] else NEGATIVE
            tail: list[str] = []
        else:
            phrases = TURNS if turns[i] else KEEPS
            tail = [names[refers_to[i]]]
        phrase = phrases[int(rng.integers(len(phrases)))]
        words += [names[i], *phrase.split(), *tail, "."]
    return Sentence(" ".join(words), label, difficulty, tuple(subjects), tuple(opinions))
