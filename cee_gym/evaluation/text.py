"""How like a reference generated texts are: ROUGE and BERTScore, by torchmetrics."""

from collections.abc import Sequence
from pathlib import Path

from cee_gym.errors import CeeGymError

_KINDS = ("rouge1", "rouge2", "rougeL")


def rouge(generated: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), mean F1 over texts, from 0 to 1.

    Args:
        generated: N texts.
        references: one for each.

    Returns:
        By name: `rouge1`, `rouge2`, `rougeL`.

    Raises:
        CeeGymError: if torchmetrics is not installed, or there are not as many of both.
    """
    _check(generated, references)
    try:
        from torchmetrics.functional.text import rouge_score
    except ImportError:
        raise _not_installed() from None
    found = rouge_score(list(generated), list(references), rouge_keys=_KINDS)
    return {kind: float(found[f"{kind}_fmeasure"]) for kind in _KINDS}


def bert_score(generated: Sequence[str], references: Sequence[str], encoder: str | Path) -> float:
    """BERTScore (Zhang et al. 2020), mean F1 over texts.

    Args:
        generated: N texts.
        references: one for each.
        encoder: a directory or a hub name; loaded in float32.

    Raises:
        CeeGymError: if torchmetrics is not installed, or there are not as many of both.
        BackboneError: if the encoder is not available.
    """
    _check(generated, references)
    try:
        from torchmetrics.functional.text import bert_score as score
    except ImportError:
        raise _not_installed() from None
    import torch
    from transformers import AutoModel

    from cee_gym.backbones.encoding import load_tokenizer
    from cee_gym.errors import unreachable_backbone

    tokenizer = load_tokenizer(str(encoder))
    try:
        model = AutoModel.from_pretrained(
            encoder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise unreachable_backbone(str(encoder), error) from error
    found = score(
        list(generated),
        list(references),
        model=model.eval(),
        user_tokenizer=tokenizer,
        user_forward_fn=lambda model, batch: (
            model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state
        ),
        max_length=min(512, int(model.config.max_position_embeddings)),
    )
    return float(torch.as_tensor(found["f1"]).mean())


def _check(generated: Sequence[str], references: Sequence[str]) -> None:
    if len(generated) != len(references) or not generated:
        raise CeeGymError(
            f"there must be one reference for each text: got {len(generated)} texts and "
            f"{len(references)} references"
        )


def _not_installed() -> CeeGymError:
    return CeeGymError('torchmetrics is not installed: pip install "cee-gym[generation]"')
