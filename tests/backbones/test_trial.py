"""What is not in the table of families is tried, and refused where exits would not be its own."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel

from cee_gym.backbones.families import Family, family_of
from cee_gym.backbones.trial import try_layers
from cee_gym.errors import BackboneError
from tests.backbones.test_families import OF_DEBERTA, SIZE, checkpoint, config_of


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("XLMRobertaXL", {}, "XLMRobertaXLModel does more with the hidden states of its last"),
        (
            "OPT",
            {"ffn_dim": 32, "word_embed_proj_dim": 16},
            "OPTModel is a decoder, whose first token sees no other",
        ),
        ("MegatronBert", {}, "the layers of MegatronBertModel cannot be run one at a time ("),
        ("RemBert", {"input_embedding_size": 16}, "the layers of RemBertModel cannot be run one"),
        (
            "DebertaV2",
            OF_DEBERTA | {"conv_kernel_size": 3},
            "DebertaV2Model does more between its layers than to call them one after another",
        ),
    ],
)
def test_what_does_not_run_layer_by_layer(
    name: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = config_of(name, **SIZE | settings)
    backbone = AutoModel.from_pretrained(checkpoint(config, tmp_path)).eval()
    with pytest.raises(BackboneError) as caught:
        try_layers(backbone, family_of(config))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_text_that_depends_on_how_long_the_others_are(tmp_path: Path, monkeypatch: Any) -> None:
    backbone = AutoModel.from_pretrained(checkpoint(config_of("Bert", **SIZE), tmp_path)).eval()
    layer = backbone.encoder.layer[0]
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda h, *a, **k: forward(h * h.shape[1], *a, **k))
    with pytest.raises(BackboneError, match="depends on how long the others in its batch are"):
        try_layers(backbone, Family())
