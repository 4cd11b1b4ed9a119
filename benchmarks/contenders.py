"""Who runs a work, with which of its settings, and the command that does it."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from watching import ROOT, Measured, watch

_ENVIRONMENTS = ROOT / "benchmarks" / ".environments"
_LANGUAGE = ("sft", "causal_lm")
LEAGUES = ("best", "defaults")
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(2**26)}
"""What onecurve sets for itself (`host.keep_memory`), as glibc reads it from the environment of others."""


@dataclass(frozen=True)
class Contender:
    """A trainer in a league: with the settings of its own examples, or with the best that keep the work the same."""

    name: str
    league: str
    tasks: tuple[str, ...] = ("text_classification", *_LANGUAGE)

    @property
    def label(self) -> str:
        """As tables name it."""
        return f"{self.name} {self.league}"

    @property
    def interpreter(self) -> Path:
        """The Python of its environment."""
        return _ENVIRONMENTS / {"plain_loop": "hf_trainer"}.get(self.name, self.name) / "bin" / "python"


OURS = Contender("onecurve", "best")
CONTENDERS = (
    OURS,
    Contender("hf_trainer", "best"),
    Contender("trl_sft", "best", _LANGUAGE),
    Contender("llama_factory", "best", _LANGUAGE),
    Contender("plain_loop", "best"),
    Contender("onecurve", "defaults"),
    Contender("hf_trainer", "defaults"),
    Contender("trl_sft", "defaults", _LANGUAGE),
    Contender("llama_factory", "defaults", _LANGUAGE),
)


@dataclass(frozen=True)
class Machine:
    """What everybody runs on."""

    threads: int
    """Of a process."""
    gpu: bool = False
    """Whether the GPU's memory is what is watched."""
    interpreter: Path | None = None
    """In place of the Python of each peer's environment."""


def run(contender: Contender, folder: Path, save_after: int, machine: Machine) -> Measured:
    """Run one contender once on the work in a folder.

    Args:
        contender: Who.
        folder: As `work.prepare` left it.
        save_after: The step to save a checkpoint after.
        machine: Where.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(machine.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    own = folder / contender.label.replace(" ", "-")
    shutil.rmtree(own, ignore_errors=True)  # LLaMA-Factory would go on from the round before
    own.mkdir()
    python = str(machine.interpreter or contender.interpreter)
    if contender.name == "onecurve":
        command = [python, "train.py", str(folder / "recipe.yaml"), "--output_dir", str(own)]
        command += ["--train.resume", "never", "--checkpoint.every", "null"]
        command += ["--checkpoint.also", f"[{save_after}]"]
        if contender.league == "best":
            # Blocks of plain text are full: there is nothing to pack
            is_plain = json.loads((folder / "work.json").read_text())["task"] == "causal_lm"
            command += [] if is_plain and not machine.gpu else ["--train.packing", "on"]
            command += ["--train.compile", "true", "--train.logits", "chunked"] if machine.gpu else []
    else:
        environment |= KEEP_MEMORY if contender.league == "best" else {}
        script = Path(__file__).with_name("runners") / f"{contender.name}.py"
        command = [python, str(script), str(folder / "work.json"), str(own), contender.league, str(save_after)]
    return watch(command, own / "metrics.jsonl", environment, folder / f"{own.name}.log", machine.gpu)
