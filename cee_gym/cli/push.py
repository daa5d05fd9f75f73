"""`cee-gym push`: put a recording where others can open it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cee_gym.cli.arguments import check_there
from cee_gym.cli.options import command


@command("push")
@dataclass(frozen=True)
class Push:
    """Copies a recording to the hub or another address, with a card that describes it.

    It is opened from there by gym.make("EarlyExit", trace=ADDRESS). Models beside the recording are
    not copied.

    Attributes:
        recording: The directory of the recording.
        to: OWNER/NAME of a data set on the hub, or an address such as s3://BUCKET/FOLDER. The hub
            wants `hf auth login` first.
        private: Make the data set private, where it is not there yet.
    """

    recording: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RECORDING")]
    to: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    private: bool = False

    def run(self) -> None:
        """Copies, and says how to open it."""
        check_there("RECORDING", self.recording)
        from cee_gym.traces.remote import push

        print(f"checking and copying {self.recording}", file=sys.stderr)
        address = push(self.recording, self.to, private=self.private or None)
        print(f"pushed. To open it: gym.make('EarlyExit', trace='{address}')")
