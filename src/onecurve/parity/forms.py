"""The launch forms there are, and which of them this machine can hold."""

import sys
from dataclasses import dataclass
from pathlib import Path

from onecurve.errors import ConfigError, LaunchError

LAUNCH_FILES = Path("accelerate_configs")
ONE_PROCESS = "one process"
_NOT_COMPARED = ("single", "multinode")
"""How the names begin of launch files that are one process themselves, or need several machines."""


@dataclass(frozen=True)
class Form:
    """One way to launch a recipe."""

    strategy: str
    """`one process`, or the name of a file of accelerate_configs/."""
    ranks: int
    micro_batch_size: int

    @property
    def name(self) -> str:
        """As the table writes it."""
        return self.strategy if self.strategy == ONE_PROCESS else f"{self.strategy} x {self.ranks}"

    @property
    def folder(self) -> str:
        """As its run directory is called."""
        return f"{self.strategy.replace(' ', '-')}-x{self.ranks}-micro{self.micro_batch_size}"

    def command(self, program: list[str], options: list[str]) -> list[str]:
        """Write the command line that starts a Python program in this form.

        Args:
            program: A file or `-m` and a module, and its arguments.
            options: The launcher's, beyond those that make the form.
        """
        if self.strategy == ONE_PROCESS:
            return [sys.executable, *program]
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
        where = ["--config_file", str(LAUNCH_FILES / f"{self.strategy}.yaml"), "--num_processes", str(self.ranks)]
        return [*launcher, *where, *options, *program]


def strategies() -> list[str]:
    """List what can be compared with one process: the files of accelerate_configs/ under the current directory.

    Raises:
        LaunchError: The current directory is not the repository's root.
    """
    names = sorted(path.stem for path in LAUNCH_FILES.glob("*.yaml") if not path.stem.startswith(_NOT_COMPARED))
    if not names or not Path("train.py").is_file():
        raise LaunchError(
            "there is no train.py with accelerate_configs/ here.", where=str(Path.cwd()), fix="Run from the "
            "repository's root."
        )  # fmt: skip
    return names


def check_strategies(asked: list[str]) -> None:
    """Check that each strategy asked for has a launch file.

    Raises:
        ConfigError: One has none.
    """
    known = strategies()
    for name in asked:
        if name not in known:
            raise ConfigError(f"no launch form {name!r}; there are {', '.join(known)}.", where="--forms")


def held(asked: list[str], ranks: list[int], micro_batch_size: int, num_gpus: int) -> tuple[list[Form], list[str]]:
    """Return the forms to launch beside one process, and a line for each that this machine cannot hold.

    A rank needs a GPU of its own where there are any; without, ranks share the cores. DDP with one rank is one process.

    Args:
        asked: Strategies.
        ranks: Numbers of ranks.
        micro_batch_size: Of each form.
        num_gpus: CUDA devices.
    """
    forms = [Form(strategy, n, micro_batch_size) for strategy in asked for n in ranks if n > 1 or strategy != "ddp"]
    refused = [form for form in forms if num_gpus and form.ranks > num_gpus]
    told = [f"{form.name}, micro-batch {micro_batch_size}: this machine has {num_gpus} GPU(s)" for form in refused]
    return [form for form in forms if form not in refused], told
