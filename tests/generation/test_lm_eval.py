"""Early exits in lm-eval, on two tiny tasks of our own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cee_gym.generation.text_generation import EarlyExitTextGeneration

lm_eval = pytest.importorskip("lm_eval")


def task(tmp_path: Path, name: str, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    file = tmp_path / f"{name}.json"
    file.write_text("\n".join(map(json.dumps, rows)))
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        **more,
    }


def evaluate(tmp_path: Path, lm: Any) -> dict[str, Any]:
    choice = task(
        tmp_path,
        "choice",
        [
            {"q": "Once upon a", "choices": [" time", " dog"], "gold": 0},
            {"q": "The girl was very", "choices": [" happy", " the"], "gold": 0},
        ],
        output_type="multiple_choice",
        doc_to_text="{{q}}",
        doc_to_choice="{{choices}}",
        doc_to_target="{{gold}}",
        metric_list=[{"metric": "acc"}],
    )
    written = task(
        tmp_path,
        "written",
        [{"q": "Once upon a time", "a": "there"}],
        output_type="generate_until",
        doc_to_text="{{q}}",
        doc_to_target="{{a}}",
        generation_kwargs={"until": ["."], "max_gen_toks": 8, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    found = lm_eval.simple_evaluate(model=lm, tasks=[choice, written], bootstrap_iters=0)
    assert found is not None
    return {
        name: [(s["doc_id"], s["filtered_resps"]) for s in samples]
        for name, samples in found["samples"].items()
    }


def test_full_depth_is_what_lm_eval_says_itself(token_run: Path, tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from cee_gym.generation.lm_eval import EarlyExitLM

    generator = EarlyExitTextGeneration.from_pretrained(token_run, full_depth=True)
    ours = evaluate(tmp_path, EarlyExitLM(generator, batch_size=2))
    own = evaluate(
        tmp_path,
        HFLM(
            pretrained=generator.decoder.backbone,
            tokenizer=generator.tokenizer,
            batch_size=2,
            backend="causal",
        ),
    )
    assert ours["written"] == own["written"]
    for (_, mine), (_, theirs) in zip(ours["choice"], own["choice"], strict=True):
        values = [[float(pair[0]) for pair in answers] for answers in (mine, theirs)]
        torch.testing.assert_close(*map(torch.tensor, values), rtol=1e-3, atol=1e-3)


def test_a_faster_speed_runs_fewer_layers(token_run: Path, tmp_path: Path) -> None:
    from cee_gym.generation.lm_eval import EarlyExitLM

    lm = EarlyExitLM(EarlyExitTextGeneration.from_pretrained(token_run, saved_layers=0.6))
    evaluate(tmp_path, lm)
    assert lm.tokens > 0
    assert lm.layers_run < 5 * lm.tokens
