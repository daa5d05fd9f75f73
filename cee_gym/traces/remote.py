"""Recordings elsewhere: on the hub, or at any address that fsspec knows."""

import hashlib
import json
import os
import re
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cee_gym.documents import publish, read_document, written_whole
from cee_gym.errors import TraceError, first_line
from cee_gym.hold import hold
from cee_gym.traces.header import FILE
from cee_gym.traces.recordings import RECORDING, home, is_address, recorded_splits
from cee_gym.traces.trace import Trace

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Nothing else is taken from elsewhere; weights that lie beside a recording stay there.
_WANTED = re.compile(rf"((\w+/)?({re.escape(FILE)}|\w+\.npy)|{re.escape(RECORDING)})")
CARD = "README.md"


@cache
def fetched(address: str) -> Path:
    """The copy on this machine of a recording, or a single trace, that is elsewhere.

    It is kept in `home()/fetched`, under a name that its headers give, and is fetched again where
    those have changed. Each array is compared with its checksum before the copy counts. A process
    looks at an address once.

    Args:
        address: such as `hf://datasets/OWNER/NAME` or `s3://BUCKET/FOLDER`.

    Raises:
        TraceError: if it cannot be reached, holds no recording, or arrives damaged.
    """
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(address)
        names = _names(system, root)
        headers = {name: system.cat_file(f"{root}/{name}") for name in names if _is_text(name)}
    except Exception as error:  # each file system has its own kinds
        raise TraceError(f"{address} cannot be read: {first_line(error)}") from error
    if not any(name.rpartition("/")[2] == FILE for name in names):
        raise TraceError(f"there is neither a recording nor a trace at {address}")
    named = json.dumps([address, {k: v.decode(errors="replace") for k, v in headers.items()}])
    place = home() / "fetched" / hashlib.sha256(named.encode()).hexdigest()[:16]
    with hold(place, wait=3600):
        if place.exists():
            return place
        unfinished = place.with_name(f"{place.name}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        for name in names:
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                system.get_file(f"{root}/{name}", str(unfinished / name))
            except Exception as error:
                raise TraceError(f"{address}/{name} cannot be read: {first_line(error)}") from error
        for header in unfinished.rglob(FILE):
            Trace.open(header.parent).verify()
        publish(unfinished, place)
    return place


def _names(system: "AbstractFileSystem", root: str) -> list[str]:
    """The files of a recording, as seen from its folder."""
    found = (path[len(root) :].lstrip("/") for path in system.find(root))
    return sorted(name for name in found if _WANTED.fullmatch(name))


def _is_text(name: str) -> bool:
    return name.endswith(".json")


def push(recording: Path, to: str, *, private: bool | None = None) -> str:
    """Copies a recording, with a card that describes it, to the hub or elsewhere.

    Args:
        recording: its directory. Models beside it are left out.
        to: `OWNER/NAME` of a data set on the hub, which is made if it is not there, or an address
            that fsspec can write to.
        private: where a data set is made.

    Returns:
        The address to open it by.

    Raises:
        TraceError: if there is no recording, it is damaged, or the place cannot be written.
    """
    splits = recorded_splits(recording)
    if not splits:
        raise TraceError(f"there is no recording at {recording}")
    for split in splits:
        Trace.open(recording / split).verify()
    address = to.rstrip("/") if is_address(to) else f"hf://datasets/{to}"
    with TemporaryDirectory() as directory:
        folder = Path(directory)
        for split in splits:
            (folder / split).mkdir()
            for file in (recording / split).iterdir():
                if _WANTED.fullmatch(f"{split}/{file.name}"):
                    os.symlink(file.absolute(), folder / split / file.name)
        if (recording / RECORDING).exists():
            shutil.copyfile(recording / RECORDING, folder / RECORDING)
        with written_whole(folder / CARD) as unfinished:
            unfinished.write_text(data_card(recording, address), encoding="utf-8")
        try:
            if is_address(to):
                _put(folder, address)
            else:
                _upload(folder, to, private)
        except Exception as error:
            raise TraceError(f"{to} cannot be written: {first_line(error)}") from error
    return address


def _put(folder: Path, address: str) -> None:
    from fsspec.core import url_to_fs

    system, root = url_to_fs(address)
    # Headers last: what has one is complete.
    files = sorted((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.name == FILE)
    for file in files:
        target = f"{root}/{file.relative_to(folder).as_posix()}"
        system.makedirs(target.rpartition("/")[0], exist_ok=True)
        system.put_file(str(file.resolve()), target)


def _upload(folder: Path, name: str, private: bool | None) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    made = api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
    api.upload_folder(
        repo_id=made.repo_id,
        repo_type="dataset",
        folder_path=folder,
        commit_message="Upload a recording with cee-gym",
    )


def data_card(recording: Path, address: str) -> str:
    """What a recording holds and how to open it, in Markdown, with the header the hub reads.

    Args:
        recording: its directory.
        address: to open it by.
    """
    traces = [Trace.open(recording / split) for split in recorded_splits(recording)]
    first = traces[0].header
    rows = "\n".join(
        f"| {trace.header.split} | {len(trace)} | {trace.correct[:, 0].mean():.3f} | "
        f"{trace.correct[:, -1].mean():.3f} | {trace.fingerprint} |"
        for trace in traces
    )
    described: dict[str, Any] = {}
    if (recording / RECORDING).exists():
        remedy = "record it again"
        found = read_document(recording / RECORDING, "description of a recording", remedy=remedy)
        described = found.get("config") or {}
    settings = "\n".join(
        f"- {name}: {value}"
        for name, value in sorted(described.items())
        if isinstance(value, str | int | float)
    )
    labels = ", ".join(first.labels) if first.labels else f"{first.num_labels} tokens"
    return f"""---
tags:
- early-exit
- reinforcement-learning
- gymnasium
---

# What every layer of {first.backbone} says about {first.task}

A recording for the Gymnasium environments of cee-gym: the hidden state of every layer with an exit,
and what a classifier there answers. An early-exit policy learns on it without running the model.

```python
import gymnasium as gym

import cee_gym

env = gym.make("EarlyExit", trace="{address}", split="train")
```

Exits at layers {", ".join(map(str, first.depths))}; states {traces[0].width} wide,
{traces[0].states.dtype}. Classes: {labels}.

| split | rows | right at the first exit | right at the last | fingerprint |
|---|---|---|---|---|
{rows}

{settings}

It holds no text, but identifiers of rows, labels, and states from which parts of a text can be
told. The licences of the text and of the model apply.
"""
