"""The made-up language: what can be known of its sentences, and what cannot."""

import numpy as np

from cee_gym.tasks import clauses


def test_what_cannot_be_answered_is_about_nobody_and_a_coin() -> None:
    made = clauses.generate(4000, seed=3)
    lost = [one for one in made if one.difficulty == clauses.NO_ANSWER]
    assert abs(len(lost) / len(made) - clauses.UNANSWERED) < 0.02
    for one in made:
        words = one.text.split()
        there = [words[place] for place in one.subjects]
        assert (words[1] in there) == (one.difficulty != clauses.NO_ANSWER)
    assert abs(np.mean([one.label for one in lost]) - 0.5) < 0.06


def test_without_them_all_can_be_answered() -> None:
    made = clauses.generate(200, seed=3, unanswered=0.0)
    for one in made:
        words = one.text.split()
        asked = [words[place] for place in one.subjects].index(words[1])
        assert one.opinions[asked] == one.label
