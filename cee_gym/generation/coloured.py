"""Text coloured by the depth of each token."""

from collections.abc import Sequence

# Of a terminal with 256 colours, from shallow to deep: green over yellow to red.
COLOURS = (46, 82, 118, 154, 190, 226, 220, 214, 208, 202, 196)


def coloured(tokens: Sequence[str], exit_layers: Sequence[int], last_layer: int) -> str:
    r"""The tokens, green where they were read early and red where they were read late.

    Args:
        tokens: as the tokenizer has them.
        exit_layers: of each, from 1.
        last_layer: of the model.

    >>> coloured(["▁Hi"], [1], 4)
    '\x1b[38;5;46m Hi\x1b[0m'
    """
    pieces = []
    for token, layer in zip(tokens, exit_layers, strict=True):
        text = token.replace("▁", " ").replace("Ġ", " ").replace("<0x0A>", "\n").replace("Ċ", "\n")
        shade = COLOURS[round((layer - 1) / max(1, last_layer - 1) * (len(COLOURS) - 1))]
        pieces.append(f"\x1b[38;5;{shade}m{text}")
    return "".join(pieces) + "\x1b[0m"
