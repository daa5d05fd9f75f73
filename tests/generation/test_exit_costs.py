"""Costs of exits, LM heads among them."""

import numpy as np
import pytest

from cee_gym.generation.exit_costs import exit_costs, reads_head
from tests.generation.decoders import decoder_of


@pytest.mark.parametrize(
    ("observe", "reads"),
    [
        (("hidden", "layer"), False),
        (("layer", "alpha"), False),
        (("confidence",), True),
        (("hidden", "margin"), True),
        (("agreement",), True),
        (("previous",), True),
    ],
)
def test_parts_that_read_a_head_are_known(observe: tuple[str, ...], reads: bool) -> None:
    assert reads_head(decoder_of("llama"), observe) is reads


def test_looking_at_heads_costs_more_the_deeper() -> None:
    decoder = decoder_of("llama", (2, 3, 4))
    without, with_heads = (exit_costs(decoder, (part,)) for part in ("hidden", "confidence"))
    np.testing.assert_allclose(np.diff(without), 1.0)
    assert (np.diff(with_heads) > 1.0).all()
