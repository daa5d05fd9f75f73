"""cee-gym: record a backbone, train an exit policy, tune it, evaluate it."""

import os
import shlex
import sys
from typing import Annotated

import tyro

from cee_gym import interrupt
from cee_gym.cli.build import Build
from cee_gym.cli.evaluate import Evaluate
from cee_gym.cli.export import Export
from cee_gym.cli.generate import Generate
from cee_gym.cli.listing import Agents, Envs
from cee_gym.cli.predict import Predict
from cee_gym.cli.profile import Profile
from cee_gym.cli.serve import Serve
from cee_gym.cli.suitability import Suitability
from cee_gym.cli.train import Train
from cee_gym.cli.tune import Tune
from cee_gym.errors import CeeGymError

Command = (
    Envs
    | Agents
    | Suitability
    | Build
    | Train
    | Tune
    | Evaluate
    | Profile
    | Predict
    | Generate
    | Serve
    | Export
)


def main(args: list[str] | None = None) -> None:
    """Runs a command; an error meant for the user is one line and exit code 2."""
    _quiet()
    command: Command | None = None
    try:
        interrupt.raise_again()
        command = tyro.cli(
            Annotated[Envs, tyro.conf.subcommand("envs")]
            | Annotated[Agents, tyro.conf.subcommand("agents")]
            | Annotated[Suitability, tyro.conf.subcommand("suitability")]
            | Annotated[Build, tyro.conf.subcommand("build")]
            | Annotated[Train, tyro.conf.subcommand("train")]
            | Annotated[Tune, tyro.conf.subcommand("tune")]
            | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
            | Annotated[Profile, tyro.conf.subcommand("profile")]
            | Annotated[Predict, tyro.conf.subcommand("predict")]
            | Annotated[Generate, tyro.conf.subcommand("generate")]
            | Annotated[Serve, tyro.conf.subcommand("serve")]
            | Annotated[Export, tyro.conf.subcommand("export")],
            prog="cee-gym",
            description=__doc__,
            args=args,
        )
        command.run()
    except CeeGymError as error:
        print(f"cee-gym: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        words = list(sys.argv[1:] if args is None else args)
        if isinstance(command, Train | Predict) and not command.resume:
            words.append("--resume")
        kept = "nothing is kept"
        if isinstance(command, Predict) and not command.to_file:
            kept = "it can only go on with a file: give --output"
        elif isinstance(command, Build | Train | Tune | Predict) or (
            isinstance(command, Suitability) and command.output is not None
        ):
            kept = f"what is done is kept. To go on: cee-gym {shlex.join(words)}"
        elif isinstance(command, Generate) and str(command.output) != "-":
            kept = f"the answers so far are in {command.output}"
        elif isinstance(command, Export):
            kept = f"what there is in {command.output} is not complete: export to another directory"
        print(f"\nstopped; {kept}", file=sys.stderr)
        raise SystemExit(130) from None
    except (
        FileExistsError,
        FileNotFoundError,
        NotADirectoryError,
        IsADirectoryError,
        PermissionError,
    ) as error:
        print(f"cee-gym: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        # Each library that writes a file has its own kind of error for this, SQLite its own words.
        if not any(w in str(error) for w in ("No space left on device", "disk is full")):
            raise
        print(f"cee-gym: the disk is full: {error}; what is done is kept", file=sys.stderr)
        raise SystemExit(2) from None


def _quiet() -> None:
    """Libraries' own bars and advice would drown ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
