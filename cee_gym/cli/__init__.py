"""cee-gym: record a backbone, train an exit policy, tune it, evaluate it."""

import contextlib
import errno
import io
import os
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Annotated, Any, Union

import tyro

from cee_gym import interrupt, processes
from cee_gym.cli.build import Build
from cee_gym.cli.compare import Compare
from cee_gym.cli.evaluate import Evaluate
from cee_gym.cli.export import Export
from cee_gym.cli.generate import Generate
from cee_gym.cli.leaderboard import Leaderboard
from cee_gym.cli.listing import Agents, Envs
from cee_gym.cli.predict import Predict
from cee_gym.cli.profile import Profile
from cee_gym.cli.push import Push
from cee_gym.cli.report import Report
from cee_gym.cli.serve import Serve
from cee_gym.cli.study import Study
from cee_gym.cli.suitability import Suitability
from cee_gym.cli.train import Train
from cee_gym.cli.tune import Tune
from cee_gym.errors import CeeGymError, did_you_mean, first_line
from cee_gym.tables import paragraph

COMMANDS: tuple[type[Any], ...] = (
    Envs,
    Agents,
    Suitability,
    Build,
    Train,
    Tune,
    Study,
    Evaluate,
    Compare,
    Report,
    Leaderboard,
    Profile,
    Predict,
    Generate,
    Serve,
    Export,
    Push,
)


def main(args: list[str] | None = None) -> None:
    """Runs a command; an error meant for the user is one line and exit code 2."""
    _quiet()
    command: Any = None
    words = list(sys.argv[1:] if args is None else args)
    voice = contextlib.nullcontext() if processes.is_main() else _silence()
    try:
        interrupt.raise_again()
        if words[:1] == ["--version"]:
            print(f"cee-gym {version('cee-gym')}")
            return
        known = [kind.command for kind in COMMANDS]
        if words and not words[0].startswith("-") and words[0] not in known:
            raise CeeGymError(f"unknown command {words[0]!r}: {did_you_mean(words[0], known)}")
        command = _parsed(words)
        if processes.count() > 1 and not isinstance(command, Build | Train):
            raise CeeGymError(
                f"{type(command).command} runs as one process: start it without accelerate launch "
                "or torchrun, which are for build and train"
            )
        with voice:
            command.run()
    except CeeGymError as error:
        processes.let_the_main_speak()
        print(f"cee-gym: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if isinstance(command, Train | Predict) and not command.resume:
            words.append("--resume")
        kept = "nothing is kept"
        if isinstance(command, Predict) and not command.to_file:
            kept = "it can only go on with a file: give --output"
        elif isinstance(command, Build | Train | Tune | Study | Predict) or (
            isinstance(command, Suitability) and command.output is not None
        ):
            kept = f"what is done is kept. To go on: cee-gym {shlex.join(words)}"
        elif isinstance(command, Generate) and str(command.output) != "-":
            kept = f"the answers so far are in {command.output}"
        elif isinstance(command, Export):
            kept = f"what there is in {command.output} is not complete: export to another directory"
        print(f"\nstopped; {kept}", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read has enough. At its end Python would flush, and complain, once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        print(f"cee-gym: {_of_system(error)}", file=sys.stderr)
        raise SystemExit(2) from None


# Libraries that write files have their own kinds of errors for these, SQLite its own words.
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "disk is full")
_OF_SYSTEM = tuple(
    os.strerror(number)
    for number in (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.EFBIG)
)


def _of_system(error: Exception) -> str:
    """What the operating system refuses, in a line; any other error is raised again."""
    text = first_line(error)
    if any(words in str(error) for words in _FULL):
        return f"the disk is full: {text}; what is done is kept"
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}"
    if any(words in str(error) for words in (*_OF_SYSTEM, "readonly database")):
        return text
    raise error


def _parsed(words: list[str]) -> Any:
    """The command that the words are.

    Raises:
        CeeGymError: if a value is out of range.
        SystemExit: if there is no such option, or help was asked for.
    """
    named = [Annotated[kind, tyro.conf.subcommand(kind.command)] for kind in COMMANDS]
    any_of_them: Any = Union[tuple(named)]  # noqa: UP007
    said, shown = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            return tyro.cli(
                any_of_them,
                prog="cee-gym",
                description=__doc__,
                args=words,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        processes.let_the_main_speak()
        # tyro puts what a dataclass refuses into a box of its own words.
        cause: BaseException | None = stop
        while cause is not None:
            if isinstance(cause, CeeGymError):
                raise cause from None
            cause = cause.__context__
        sys.stderr.write(said.getvalue())
        # tyro breaks the lines of its boxes, and not those of the text above them.
        for line in shown.getvalue().splitlines():
            print(paragraph(line) if line[:1].isalpha() else line)
        raise


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Of several processes the main one speaks; what another fails of is still printed."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _quiet() -> None:
    """Libraries' own bars and advice would drown ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
