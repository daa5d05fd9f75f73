"""Fixtures that several test modules share: tiny models, tokenizer and data, and real data."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as the command line has it
os.environ["COLUMNS"] = "200"  # tables in one line; how they are broken has tests of its own
# Threads cost more than they give at the size of these models; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

    from cee_gym.exits import MultiExitModel

hypothesis.settings.register_profile("tests", deadline=None)  # a loaded machine is no failure
hypothesis.settings.load_profile("tests")

WORDS = ["the", "a", "cat", "dog", "mat", "tree", "sat", "ran", "is", "was"]
WORDS += ["on", "under", "not", "very", "good", "bad", "it", "and"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_SIZE: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
# Name of the family -> its class of configuration, and how a tiny one is made.
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _SIZE),
    "roberta": ("RobertaConfig", _SIZE),
    "xlm-roberta": ("XLMRobertaConfig", _SIZE),
    "mpnet": ("MPNetConfig", _SIZE),
    "deberta-v2": (
        "DebertaV2Config",
        {
            **_SIZE,
            "relative_attention": True,
            "position_buckets": 8,  # fewer than positions, so that far ones share a bucket
            "norm_rel_ebd": "layer_norm",
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "albert": ("AlbertConfig", {**_SIZE, "embedding_size": 8}),
    "albert-2-groups": (
        "AlbertConfig",
        {**_SIZE, "embedding_size": 8, "num_hidden_layers": 4, "num_hidden_groups": 2},
    ),
    "electra": ("ElectraConfig", {**_SIZE, "embedding_size": 8, "num_hidden_layers": 5}),
    "distilbert": (
        "DistilBertConfig",
        {
            "vocab_size": _SIZE["vocab_size"],
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 32,
            "max_position_embeddings": 40,
        },
    ),
    "modernbert": (
        "ModernBertConfig",
        {
            **_SIZE,
            "num_hidden_layers": 4,
            "global_attn_every_n_layers": 2,  # so that layers differ in the mask they are given
            "local_attention": 4,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "cls_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
        },
    ),
}


def tiny_config(family: str) -> "PreTrainedConfig":
    import transformers

    config, settings = _FAMILIES[family]
    return getattr(transformers, config)(**settings)


@pytest.fixture(params=_FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every family of encoders in turn."""
    return request.param


@pytest.fixture
def backbone_config(family: str) -> "PreTrainedConfig":
    """A tiny configuration of every family of encoders in turn."""
    return tiny_config(family)


@pytest.fixture
def tiny_model() -> "MultiExitModel":
    """A BERT of 3 layers, 16 wide, with exits for 2 classes, in eval mode.

    Its weights are the same every time, and so large that states and layers differ.
    """
    import torch

    from cee_gym.exits import MultiExitConfig, MultiExitModel

    labels = {0: "bad", 1: "good"}
    config = MultiExitConfig(
        tiny_config("bert"),
        max_tokens=_SIZE["max_position_embeddings"],
        id2label=labels,
        label2id={label: number for number, label in labels.items()},
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = MultiExitModel(config)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    """Knows a few English words; `[CLS] text [SEP]` or `[CLS] text [SEP] pair [SEP]`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def tiny_data() -> "Dataset":
    """24 texts of 1 to 12 words, no two of which are alike, of 2 classes."""
    import numpy as np
    from datasets import Dataset

    rng = np.random.default_rng(0)
    lengths = rng.permutation(np.repeat(np.arange(1, 13), 2))
    return Dataset.from_dict(
        {
            "row_id": [f"train/{row}" for row in range(len(lengths))],
            "text": [" ".join(rng.permutation(WORDS)[:length]) for length in lengths],
            "label": rng.integers(2, size=len(lengths)).tolist(),
        }
    )


OWN_MODULE = """
import numpy as np
from cee_gym import register_cost, register_hardness, register_observation, register_quality

@register_quality("probability", low=0.0, high=1.0)
def probability(exits):
    return np.exp(-exits.loss)

@register_quality("margin", low=0.0, high=1.0)
def margin_of_answer(exits):
    return 2 * exits.confidence - 1

@register_quality("agreement", low=0.0, high=1.0, deeper=True)
def agreement(exits):
    return exits.prediction == exits.prediction[..., -1:]

@register_hardness("mean_correct")
def mean_correct(exits):
    return exits.correct.mean(axis=1)

@register_cost("squares")
def squares(depths):
    return depths**2

@register_observation("runner_up", low=0.0, high=0.5)
def runner_up(seen):
    return seen.xp.sort(seen.probs, axis=-1)[..., -2:-1]

@register_observation("in_a_row", low=0.0, high=100.0, path=True)
def in_a_row(seen):
    given, run = seen.prediction, [seen.xp.ones_like(seen.prediction[:, 0])]
    for t in range(1, given.shape[1]):
        one = seen.xp.ones_like(run[-1])
        run.append(seen.xp.where(given[:, t] == given[:, t - 1], run[-1] + 1, one))
    return seen.xp.stack(run, axis=1)[..., None]
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of the user's in the working directory; see `OWN_MODULE`.

    What it registers is forgotten after the test.
    """
    from cee_gym.hardness import HARDNESS
    from cee_gym.observation import PARTS
    from cee_gym.reward import COSTS, QUALITIES

    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine.py").write_text(OWN_MODULE)
    monkeypatch.chdir(folder)
    for registry in (HARDNESS, PARTS, COSTS, QUALITIES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        monkeypatch.setattr(registry, "_modules", dict(registry._modules))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield "mine"
    sys.modules.pop("mine", None)


@pytest.fixture
def local_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray on this machine with two CPUs, in this process until the test ends."""
    from tests.ray_workers import NEEDED

    ray = pytest.importorskip("ray", reason=NEEDED)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory with real data and weights; mark what asks for it `real_data`."""
    path = Path(__file__).parents[2] / "shared"
    if not (path / "data").is_dir() or not (path / "models").is_dir():
        pytest.skip(f"no real data and weights at {path}")
    return path
