"""train.py whose directory is renamed before a save, which has failed once training goes on: `MOVED RECIPE ...`."""

from concurrent.futures import wait
from typing import Any

import train
from onecurve import resume
from onecurve.checkpoint import Writer
from onecurve.run.lifecycle import Run


def main(argv: list[str], run: Run) -> None:
    class Vanishing(Writer):
        def save(self, *arguments: Any) -> float:
            self.root.parent.rename(argv[0])
            stall = super().save(*arguments)
            assert self.under_way is not None
            wait([self.under_way])
            return stall

    resume.Writer = Vanishing
    train.main(argv[1:], run)
