"""train.py as it was before unused parameters were looked for, in one process: trained, and without optimizer state."""

from typing import Any

import train
from onecurve.model import reach
from onecurve.strategies.plain import Plain

UNUSED = "pooler"


def main(argv: list[str], run: Any) -> None:
    windows = Plain.windows

    def without_state_of_the_unused(self: Plain, once: bool = False) -> Any:
        return (w for w in windows(self, once) if w.key == "param" or UNUSED not in w.name)

    reach.probe = lambda *_: ("", [])
    Plain.windows = without_state_of_the_unused
    train.main(argv, run)
