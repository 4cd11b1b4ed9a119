"""train.py whose checkpoints are written when training has gone on: `late RECIPE ...`, or with a bug `forgetful`."""

import time
from threading import Event

import train
from onecurve.checkpoint import writer
from onecurve.checkpoint.staging import Staging
from onecurve.run.lifecycle import Run


class Late(Staging):
    """Writes only after the next update has been announced, and made."""

    def __init__(self) -> None:
        super().__init__()
        self.announced = Event()

    def secure(self) -> None:
        super().secure()
        self.announced.set()

    def write(self, *arguments):
        assert self.announced.wait(60)
        time.sleep(0.5)
        return super().write(*arguments)


class Forgetful(Late):
    """The planted bug: keeps nothing of what an update changes."""

    def secure(self) -> None:
        self.announced.set()


def main(argv: list[str], run: Run) -> None:
    writer.Staging = {"late": Late, "forgetful": Forgetful}[argv[0]]
    train.main(argv[1:], run)
