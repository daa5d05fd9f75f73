"""Train the toy BERT on Clauses: twelve layers, a classifier at every one of them.

    python benchmarks/train_toybert.py --output cee_gym/shipped/EarlyExit-ToyBERT-Clauses/backbone

The aim is a small model that needs its depth: each further reference in a sentence (see
`cee_gym.tasks.clauses`) should take it about one further layer. Trained directly, such a model
learns to read opinions that are said outright and nothing else, so the script helps it along:

* Lessons. Sentences start short, with at most one reference, and nearly all references keep the
  opinion; then references turn more often, up to one half of them, and sentences get longer. A
  lesson is over as soon as the last layer masters it.
* Initial weights. Keys start equal to queries, so that equal words attend to one another. Positions
  are sinusoids and stay that way, so that neighbours are easy to find, and clauses are moved to
  the right at random, so that they are found in every place before sentences get long.
* One shared layer. All layers after the first are the same module at first, so what it learns
  about one reference holds at every depth, and easier lessons use fewer layers, which saves time.
  For the last two lessons every layer has a copy of its own.
* Hints. A throw-away classifier tells from the hidden state at every mention of a person what
  that person thinks.

Only in the last lesson are there sentences that cannot be answered. `--start DIR` gives that lesson
alone, in minutes, to a model that has had the others; the shipped one was made in these two steps.

The loss of the classifiers is the weighted sum `sum_l l * CE_l / sum_l l`, so that deeper layers
count for more. Everything is seeded; the same machine gives the same weights.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import write
from scipy.stats import spearmanr
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from cee_gym.exits import MultiExitConfig, MultiExitModel
from cee_gym.tasks import clauses

LAYERS = 12
WORD_IDS = {word: i for i, word in enumerate(clauses.VOCABULARY)}
PAD, CLS, SEP = (WORD_IDS[word] for word in ("[PAD]", "[CLS]", "[SEP]"))
QUESTION = 4  # tokens up to the colon
LONGEST = 56  # tokens of the longest sentences, about
NO_HINT = -100
CHECK_EVERY = 100  # batches
DEV_SEED, DEV_SIZE = 1, 4000
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Lesson:
    """One part of the training.

    Attributes:
        steps: Number of batches at most.
        layers: Number of layers in use.
        frequencies: Share of each difficulty, from 0 on.
        max_clauses: Most clauses in a sentence.
        turning: Share of turning references.
        target: Accuracy of the last layer in use at which the lesson is over.
        shared: Whether all layers after the first are one module.
        shift: Whether clauses are moved to the right at random.
        unanswered: Share of sentences that cannot be answered.
        rate: Learning rate at the beginning and at the end.
        hints: Weight of the hints in the loss.
    """

    steps: int
    layers: int
    frequencies: tuple[float, ...]
    max_clauses: int
    turning: float = 0.5
    target: float | None = 0.98
    shared: bool = True
    shift: bool = True
    unanswered: float = 0.0
    rate: tuple[float, float] = (2e-3, 2e-3)
    hints: float = 1.0


LESSONS = (
    Lesson(2000, 4, (1,) * 2, 4, turning=0.1, target=0.94, shift=False),
    Lesson(1000, 4, (1,) * 2, 4, turning=0.3),
    Lesson(1000, 4, (1,) * 2, 4),
    Lesson(1000, 6, (1,) * 3, 5),
    Lesson(1000, 7, (1,) * 4, 6),
    Lesson(1000, 8, (1,) * 5, 7),
    Lesson(1000, 9, (1,) * 6, 8),
    Lesson(1000, 11, (1,) * 7, 9),
    Lesson(1000, 12, (1,) * 8, 10),
    Lesson(
        *(2500, LAYERS, clauses.FREQUENCIES, clauses.MAX_CLAUSES),
        target=None,
        shared=False,
        shift=False,
        rate=(1e-3, 0.0),
        hints=0.3,
    ),
    Lesson(
        *(1000, LAYERS, clauses.FREQUENCIES, clauses.MAX_CLAUSES),
        target=None,
        shared=False,
        shift=False,
        unanswered=clauses.UNANSWERED,
        rate=(5e-4, 0.0),
        hints=0.3,
    ),
)


class MultiExitBert(nn.Module):
    """A BERT whose every layer has a classifier, on top of one pooler for all."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.backbone = BertModel(config, add_pooling_layer=False)
        self.poolers = nn.ModuleList([nn.Linear(config.hidden_size, config.hidden_size)])
        self.heads = nn.ModuleList(
            nn.Linear(config.hidden_size, len(clauses.LABELS))
            for _ in range(config.num_hidden_layers)
        )

    def forward(
        self, ids: Tensor, positions: Tensor | None = None
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Return the logits and the hidden states of every layer in use."""
        states = self.backbone(
            ids,
            attention_mask=(ids != PAD).long(),
            position_ids=positions,
            output_hidden_states=True,
        ).hidden_states[1:]
        logits = []
        for state, head in zip(states, self.heads, strict=False):
            pooled = torch.tanh(self.poolers[0](state[:, 0]))
            logits.append(head(functional.dropout(pooled, 0.1, self.training)))
        return logits, states


def build_model() -> MultiExitBert:
    """Build the model with the initial weights described above."""
    config = BertConfig(
        vocab_size=len(clauses.VOCABULARY),
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
        pad_token_id=PAD,
        id2label=dict(enumerate(clauses.LABELS)),
        label2id={name: i for i, name in enumerate(clauses.LABELS)},
    )
    model = MultiExitBert(config)
    embeddings = model.backbone.embeddings
    size = config.hidden_size
    angles = torch.arange(64)[:, None] * 100.0 ** (-torch.arange(0, size, 2) / size)
    embeddings.position_embeddings.requires_grad_(False)
    with torch.no_grad():
        embeddings.word_embeddings.weight.normal_(0, 0.5)
        embeddings.position_embeddings.weight[:, 0::2] = 0.5 * torch.sin(angles)
        embeddings.position_embeddings.weight[:, 1::2] = 0.5 * torch.cos(angles)
        for layer in model.backbone.encoder.layer:
            attention: Any = layer.attention
            attention.self.query.weight.normal_(0, 0.12)
            attention.self.key.weight.copy_(attention.self.query.weight)
    return model


def encode(made: list[clauses.Sentence]) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids, labels, and at every mention of a person their opinion (the hints)."""
    words = [sentence.text.split() for sentence in made]
    ids = np.full((len(made), max(map(len, words)) + 2), PAD)
    hints = np.full(ids.shape, NO_HINT)
    for row, sentence in enumerate(made):
        opinions = dict(
            zip((words[row][i] for i in sentence.subjects), sentence.opinions, strict=True)
        )
        ids[row, : len(words[row]) + 2] = [CLS, *(WORD_IDS[w] for w in words[row]), SEP]
        hints[row, 1 : len(words[row]) + 1] = [opinions.get(w, NO_HINT) for w in words[row]]
    labels = torch.tensor([sentence.label for sentence in made])
    return torch.from_numpy(ids), labels, torch.from_numpy(hints)


def shifted_positions(ids: Tensor) -> Tensor:
    """Return positions at which the clauses (all after the colon) are moved right at random."""
    rows, columns = ids.shape
    positions = torch.arange(columns).repeat(rows, 1)
    positions[:, QUESTION:] += torch.randint(max(1, LONGEST - columns + 1), (rows, 1))
    return positions


def batches_of(lesson: Lesson, size: int, seeds: Iterator[int]) -> Iterator[list[clauses.Sentence]]:
    """Yield batches for ever, each of sentences of about the same length."""
    for seed in seeds:
        made = clauses.generate(
            *(32 * size, seed, lesson.frequencies, lesson.max_clauses),
            *(lesson.turning, lesson.unanswered),
        )
        made.sort(key=lambda sentence: len(sentence.text))
        batches = [made[i : i + size] for i in range(0, len(made), size)]
        np.random.default_rng(seed).shuffle(batches)
        yield from reversed(batches)


def use_layers(model: MultiExitBert, lesson: Lesson, previous: Lesson | None) -> None:
    """Give the model the layers of a lesson; a new layer starts as a copy of the last one."""
    if previous is not None and not previous.shared:
        return
    encoder = model.backbone.encoder
    first, second = encoder.layer[0], encoder.layer[1]
    rest = [second if lesson.shared else copy.deepcopy(second) for _ in range(lesson.layers - 1)]
    encoder.layer = nn.ModuleList([first, *rest])
    if previous is not None:
        last = model.heads[previous.layers - 1].state_dict()
        for head in model.heads[previous.layers : lesson.layers]:
            head.load_state_dict(last)


def train(
    model: MultiExitBert, lessons: tuple[Lesson, ...], batch: int, previous: Lesson | None
) -> None:
    """Train the model through lessons, after a previous one, if any."""
    hinter = nn.Linear(model.backbone.config.hidden_size, len(clauses.LABELS))
    seeds = count(clauses.TRAINING_SEED)
    optimizer = None
    started = time.perf_counter()
    model.train()
    for number, lesson in enumerate(lessons, 1):
        use_layers(model, lesson, previous)
        parameters = [p for p in (*model.parameters(), *hinter.parameters()) if p.requires_grad]
        if optimizer is None or not lesson.shared:
            optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=0.01)
            warm = 0
        batches = batches_of(lesson, batch, seeds)
        weights = [i / sum(range(lesson.layers + 1)) for i in range(1, lesson.layers + 1)]
        right = np.zeros(lesson.layers)
        for step in range(lesson.steps):
            warm += 1
            begin, end = lesson.rate
            for group in optimizer.param_groups:
                group["lr"] = (begin + step / lesson.steps * (end - begin)) * min(1.0, warm / 200)
            ids, labels, hints = encode(next(batches))
            logits, states = model(ids, shifted_positions(ids) if lesson.shift else None)
            hinted = hints != NO_HINT
            loss = torch.zeros(())
            for i, weight in enumerate(weights):
                exit_loss = functional.cross_entropy(logits[i], labels)
                hint_loss = functional.cross_entropy(hinter(states[i][hinted]), hints[hinted])
                loss = loss + weight * exit_loss
                loss = loss + weight * lesson.hints * hint_loss
                right[i] += float((logits[i].argmax(-1) == labels).double().mean())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if (step + 1) % CHECK_EVERY == 0:
                accuracies = right / CHECK_EVERY
                right[:] = 0
                seconds = time.perf_counter() - started
                print(f"lesson {number} step {step + 1} ({seconds:.0f} s), accuracy per layer")
                print("   ", *(f"{accuracy:.3f}" for accuracy in accuracies), flush=True)
                if lesson.target is not None and accuracies[-1] >= lesson.target:
                    break
        previous = lesson


def evaluate(model: MultiExitBert) -> dict[str, object]:
    """Measure the model on sentences it has not seen."""
    made = clauses.generate(DEV_SIZE, DEV_SEED)
    model.eval()
    with torch.inference_mode():
        probabilities = np.concatenate(
            [
                torch.stack(model(encode(made[i : i + 250])[0])[0], 1).softmax(-1).numpy()
                for i in range(0, len(made), 250)
            ]
        )
    labels = np.array([sentence.label for sentence in made])
    difficulties = np.array([sentence.difficulty for sentence in made])
    right = probabilities.argmax(-1) == labels[:, None]
    answered = difficulties != clauses.NO_ANSWER
    return {
        "accuracy_per_layer": right.mean(0).round(4).tolist(),
        "accuracy_per_layer_where_there_is_an_answer": right[answered].mean(0).round(4).tolist(),
        "accuracy_per_difficulty_and_layer": {
            int(d): right[difficulties == d].mean(0).round(3).tolist()
            for d in np.unique(difficulties)
        },
        "spearman": float(
            spearmanr(memorized_layers(right[answered]), difficulties[answered]).statistic
        ),
        "threshold": threshold_check(probabilities.max(-1), right),
    }


def memorized_layers(right: BoolArray) -> npt.NDArray[np.int64]:
    """Return the first layer from which on every layer is right, the last layer if none is."""
    layers = right.shape[1]
    streak = np.cumprod(right[:, ::-1], axis=1).sum(1)
    return np.minimum(layers - streak + 1, layers)


def threshold_check(confidence: FloatArray, right: BoolArray) -> dict[str, float]:
    """Choose the confidence to exit at on one half of the sentences and report on the other."""
    rows, layers = right.shape

    def exits(threshold: float, part: slice) -> tuple[float, float]:
        sure = confidence[part] >= threshold
        sure[:, -1] = True
        at = sure.argmax(1)
        accuracy = np.take_along_axis(right[part], at[:, None], 1).mean()
        return float(accuracy), float(1 - (at + 1).mean() / layers)

    half, other = slice(0, rows // 2), slice(rows // 2, rows)
    enough = right[half, -1].mean() - 0.005
    candidates = [float(t) for t in np.linspace(0.5, 1.0, 501)]
    chosen = next((t for t in candidates if exits(t, half)[0] >= enough), 1.0)
    accuracy, saved = exits(chosen, other)
    return {
        "threshold": chosen,
        "accuracy": accuracy,
        "full_accuracy": float(right[other, -1].mean()),
        "saved": saved,
    }


def to_multi_exit(model: MultiExitBert) -> MultiExitModel:
    """The same model as the library knows it."""
    config = MultiExitConfig(
        backbone_config=model.backbone.config,
        max_tokens=64,
        task="clauses",
        id2label=dict(enumerate(clauses.LABELS)),
        label2id={name: i for i, name in enumerate(clauses.LABELS)},
    )
    multi_exit = MultiExitModel(config)
    multi_exit.load_state_dict(model.state_dict())
    return multi_exit


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: one token for each word of the language."""
    tokenizer = Tokenizer(WordLevel(WORD_IDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )


def main() -> None:
    """Train, round the weights to half precision, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--start", type=Path, help="a model to give the last lesson only")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights")
    parser.add_argument("--batch", type=int, default=64, help="sentences in a batch")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)

    started = time.perf_counter()
    model = build_model()
    if arguments.start is None:
        train(model, LESSONS, arguments.batch, None)
    else:
        model.load_state_dict(MultiExitModel.from_pretrained(arguments.start).state_dict())
        train(model, LESSONS[-1:], arguments.batch, LESSONS[-2])
    seconds = time.perf_counter() - started
    model.half().float()
    metrics = {
        "seed": arguments.seed,
        "last_lesson_only": arguments.start is not None,
        "seconds": round(seconds),
        **evaluate(model),
    }
    print(json.dumps(metrics, indent=2))

    arguments.output.mkdir(parents=True, exist_ok=True)
    to_multi_exit(model).half().save_pretrained(arguments.output)
    build_tokenizer().save_pretrained(arguments.output)
    write("toybert", metrics)


if __name__ == "__main__":
    main()
