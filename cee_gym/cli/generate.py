"""`cee-gym generate`: answer the prompts of a file."""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import tyro

from cee_gym.cli.arguments import SpeedArguments, loading
from cee_gym.cli.options import command
from cee_gym.errors import CeeGymError, check_number, first_line
from cee_gym.hold import hold
from cee_gym.settings import MOST_SEED
from cee_gym.tasks.files import read_jsonl

if TYPE_CHECKING:
    from cee_gym.generation.decoding import CachePolicy
    from cee_gym.generation.text_generation import EarlyExitTextGeneration
else:
    from typing import Literal

    CachePolicy = Literal["copy", "recompute", "verify"]

_STANDARD = Path("-")


@command("generate")
@dataclass(frozen=True)
class Generate:
    """Answers the prompts of a file. The policy decides the depth of each token.

    The output has one line of JSON for each prompt, in order: prompt, generated_text, tokens,
    exit_layers and mean_exit_layer. A prompt that cannot be answered gets the number of its line
    and an error; the others go on, and the exit code is 2.

    Attributes:
        model: A run of train, a saved directory, or a name on the hub.
        input: A .jsonl file whose lines have a prompt or the columns of the task; a .txt file with
            one prompt per line; or - for the standard input, with one prompt per line.
        output: A new file, or - for the standard output.
        prompt: One prompt, instead of an input.
        max_new_tokens: The largest number of tokens of an answer.
        batch_size: The number of prompts that run together.
        cache: What later tokens see of a token that left early: `copy`, `recompute` or `verify`.
        sample: Draw tokens instead of taking the most probable ones.
        temperature: The temperature of sampling.
        seed: The seed of sampling.
        full_depth: Run every token through all layers, for comparison.
        coloured: Write texts for a terminal instead of JSON. A token that left early is green, one
            that left late is red.
        speed: How fast the policy should be.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    input: Path = _STANDARD
    output: Path = _STANDARD
    prompt: str | None = None
    max_new_tokens: int = 128
    batch_size: int = 1
    cache: CachePolicy = "copy"
    sample: bool = False
    temperature: float = 1.0
    seed: int = 0
    full_depth: bool = False
    coloured: bool = False
    speed: SpeedArguments = field(default_factory=SpeedArguments)

    def run(self) -> None:
        """Generates, and says what it took on the standard error."""
        if self.output != _STANDARD and self.output.exists():
            raise CeeGymError(f"{self.output} is there already: give another --output")
        if self.prompt is None and self.input != _STANDARD and not self.input.is_file():
            raise CeeGymError(f"--input {self.input}: there is no such file")
        if self.full_depth and self.speed.option is not None:
            raise CeeGymError(f"--full-depth runs all layers: leave {self.speed.option} out")
        check_number("--batch-size", self.batch_size, 1)
        check_number("--max-new-tokens", self.max_new_tokens, 1)
        check_number("--temperature", self.temperature, 1e-6)
        check_number("--seed", self.seed, 0, MOST_SEED)
        self.speed.speed()
        directory = loading(self.model)
        import torch

        from cee_gym.generation.text_generation import EarlyExitTextGeneration

        generator = EarlyExitTextGeneration.from_pretrained(
            directory, cache=self.cache, full_depth=self.full_depth, **vars(self.speed)
        )
        torch.manual_seed(self.seed)
        layers: list[int] = []
        failed = 0
        with ExitStack() as files:
            sink: IO[str] = sys.stdout
            if self.output != _STANDARD:
                files.enter_context(hold(self.output))
                if self.output.exists():
                    raise CeeGymError(f"{self.output} is there already: give another --output")
                sink = files.enter_context(self.output.open("x", encoding="utf-8"))
            for line in self._lines(generator):
                if "error" in line:
                    failed += 1
                else:
                    layers += line["exit_layers"]
                print(self._shown(line, generator), file=sink, flush=True)
        depth = generator.decoder.depths[-1]
        if layers:
            mean = sum(layers) / len(layers)
            print(
                f"{len(layers)} tokens, mean exit layer {mean:.2f} of {depth}, "
                f"{1 - mean / depth:.1%} of the layers saved",
                file=sys.stderr,
            )
        if failed:
            raise CeeGymError(f"{failed} prompts could not be answered: see their lines")

    def _shown(self, line: dict[str, Any], generator: "EarlyExitTextGeneration") -> str:
        from cee_gym.generation.coloured import coloured

        if not self.coloured or "error" in line:
            return json.dumps(line, ensure_ascii=False)
        text = coloured(line["tokens"], line["exit_layers"], generator.decoder.depths[-1])
        return f"{line['prompt']}{text}\n"

    def _lines(self, generator: "EarlyExitTextGeneration") -> Iterator[dict[str, Any]]:
        """What becomes of each prompt, in order."""
        waiting: list[tuple[str, dict[str, Any] | None]] = []
        for number, given in enumerate(self._prompts(generator), start=1):
            prompt, error = (given, None) if isinstance(given, str) else ("", str(given))
            if error is None:
                try:
                    generator.encode(prompt, self.max_new_tokens)
                except CeeGymError as refused:
                    error = str(refused)
            bad = None if error is None else {"line": number, "error": error}
            waiting.append((prompt, bad))
            if sum(bad is None for _, bad in waiting) == self.batch_size:
                yield from self._answer(generator, waiting)
                waiting = []
        yield from self._answer(generator, waiting)

    def _answer(
        self,
        generator: "EarlyExitTextGeneration",
        waiting: list[tuple[str, dict[str, Any] | None]],
    ) -> Iterator[dict[str, Any]]:
        good = [prompt for prompt, bad in waiting if bad is None]
        sampling = {"do_sample": True, "temperature": self.temperature} if self.sample else {}
        answers = iter(
            generator(
                good,
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
                **sampling,
            )
        )
        for prompt, bad in waiting:
            if bad is not None:
                yield bad
                continue
            answer = next(answers)
            exits = answer["exit_layers"]
            mean = sum(exits) / len(exits)
            yield {"prompt": prompt, **answer, "mean_exit_layer": round(mean, 3)}

    def _prompts(self, generator: "EarlyExitTextGeneration") -> Iterator[str | CeeGymError]:
        if self.prompt is not None:
            yield self.prompt
            return
        if self.input == _STANDARD:
            yield from (line.rstrip("\n") for line in sys.stdin)
            return
        if self.input.suffix != ".jsonl":
            yield from self.input.read_text(encoding="utf-8").splitlines()
            return
        with self.input.open("rb") as lines:
            for _, row in read_jsonl(lines):
                if isinstance(row, CeeGymError):
                    yield row
                    continue
                try:
                    yield str(row["prompt"]) if "prompt" in row else generator.task.prompt(row)
                except (KeyError, TypeError) as error:
                    yield CeeGymError(f"no prompt: {first_line(error)}")
