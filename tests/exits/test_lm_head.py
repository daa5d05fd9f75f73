"""Exits of a decoder, held against transformers' own outputs."""

from pathlib import Path

import pytest
import torch
import transformers as tr

from cee_gym.errors import BackboneError, CeeGymError
from cee_gym.exits.lm_head import MultiExitDecoder, load_causal_lm, load_lm_tokenizer, usual_depths
from tests.generation.decoders import CONFIGS, decoder_of, prompts

IDS = torch.tensor([[1, 7, 9, 4, 30]])


@pytest.mark.parametrize("family", list(CONFIGS))
def test_states_and_last_answer_are_the_models_own(family: str) -> None:
    decoder = decoder_of(family)
    with torch.no_grad():
        own = decoder.backbone(input_ids=IDS, output_hidden_states=True)
        states = decoder(IDS)
    # The last of transformers' hidden states is normed already.
    for mine, theirs in zip(states[:-1], own.hidden_states[1:-1], strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(decoder.answer(states[-1], decoder.num_layers), own.logits)


def test_a_fresh_adapter_changes_nothing() -> None:
    backbone = decoder_of("llama").backbone
    plain, fresh = MultiExitDecoder(backbone, adapter_rank=0), MultiExitDecoder(backbone)
    with torch.no_grad():
        states = plain(IDS)
        for exit in range(1, plain.num_layers + 1):
            torch.testing.assert_close(
                fresh.answer(states[exit - 1], exit),
                plain.answer(states[exit - 1], exit),
                rtol=1e-3,
                atol=1e-3,
            )


def test_usual_depths_end_with_the_last_layer() -> None:
    for layers in range(2, 100):
        depths = usual_depths(layers)
        assert depths[-1] == layers
        assert list(depths) == sorted(set(depths))
        assert len(depths) == min(8, layers)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    decoder = decoder_of("qwen2", (1, 3, 4))
    decoder.save_pretrained(tmp_path)
    loaded = MultiExitDecoder.load(tmp_path)
    assert loaded.depths == (1, 3, 4)
    assert loaded.fingerprint == decoder.fingerprint
    # The backbone is an ordinary model to transformers.
    plain = tr.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).logits, decoder.backbone(IDS).logits)


@pytest.mark.parametrize("depths", [(1, 2), (4, 2), (0, 4), (2, 2, 4), (4,), ()])
def test_exits_must_rise_to_the_last_layer(depths: tuple[int, ...]) -> None:
    with pytest.raises(CeeGymError, match="exits"):
        decoder_of("llama", depths)


def test_what_is_no_decoder_is_refused(tmp_path: Path) -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
    with pytest.raises(BackboneError, match="no decoder"):
        MultiExitDecoder(tr.BertLMHeadModel(tr.BertConfig(**size, intermediate_size=16)))
    config = tr.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=40)
    with pytest.raises(BackboneError, match="encoder-decoder"):
        MultiExitDecoder(tr.T5ForConditionalGeneration(config))
    with pytest.raises(BackboneError, match="there is no file"):
        load_causal_lm(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nothing")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_causal_lm(tmp_path / "bad.gguf")
    with pytest.raises(BackboneError):
        load_lm_tokenizer(tmp_path)


def test_damaged_exits_are_refused(tmp_path: Path) -> None:
    decoder_of("llama").save_pretrained(tmp_path)
    (tmp_path / "exits.safetensors").write_bytes(b"\0" * 10)
    with pytest.raises(CeeGymError, match="damaged"):
        MultiExitDecoder.load(tmp_path)
    (tmp_path / "exits.json").unlink()
    with pytest.raises(BackboneError):
        MultiExitDecoder.load(tmp_path)


def test_a_streamer_in_the_wrong_place_is_refused() -> None:
    decoder = decoder_of("llama")
    with pytest.raises(CeeGymError, match="EarlyExitDecoding"):
        decoder.generate(**prompts(1), streamer=object(), custom_generate=lambda: None)
    with pytest.raises(CeeGymError, match="tokenizer"):
        decoder.generate(**prompts(1), stop_strings=["a"], custom_generate=lambda: None)
