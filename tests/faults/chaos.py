"""SIGKILLs of random ranks at random moments, each followed by a restart: `python -m tests.faults.chaos --kills 200`.

Every run that comes to its end in spite of them is held against one that nobody killed: its curve, its final
parameters, its files. When enough ranks have been killed, what was seen is printed as JSON.
"""

import argparse
import json
import random
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

from onecurve.checkpoint import verify
from onecurve.checkpoint.folders import folder_name, steps
from tests.launching import Finished, write_recipe
from tests.resume.curves import partings, weights
from tests.resume.forking import Forks, Started
from tests.tiny_models import build_tiny_llama

NUM_STEPS, SAVED_EVERY = 2000, 5
WHILE_BEGINNING = 0.25
"""Share of the kills that come at any moment of a launch; the others come while it trains."""
SECONDS_OF_TRAINING = 1.0
"""In which they come, counted from its first step."""
SECONDS_TO_END = 60
"""After which a process that still runs is an orphan."""


@dataclass
class Seen:
    """What came of all those kills."""

    kills: int = 0
    before_the_first_step: int = 0
    """Kills of a launch that had not trained a step yet."""
    during_a_save: int = 0
    runs_finished: int = 0
    most_steps_lost: int = 0
    """Between the last step that was trained and the checkpoint that the next launch went on from."""
    longest_end: float = 0.0
    """Seconds from a kill until the other rank was gone as well."""
    largest_difference: float = 0.0
    """Of a final parameter from the undisturbed run's."""


class Chaos:
    """Runs of one recipe on two ranks under one strategy."""

    def __init__(self, forks: Forks, folder: Path, how: str, seed: int) -> None:
        self.forks, self.folder, self.how, self.chance = forks, folder, how, random.Random(seed)
        self.recipe, self.seen = _write_recipe(folder), Seen()
        self.whole = _good(self._start("undisturbed").wait())
        self.seconds_to_begin = 1.0
        """Of the last launch that trained a step."""
        self.resumed_from = 0
        self.name = "run 1"

    def kill(self) -> None:
        """Let the run begin or go on, and kill a rank."""
        run = self._start(self.name)
        self._wait(run)
        if not run.under_way:
            return self._finish(_good(run.wait()))
        run.kill(self.chance.randrange(2))
        killed = time.monotonic()
        while run.under_way:
            assert time.monotonic() < killed + SECONDS_TO_END, "an orphan"
            time.sleep(0.01)
        self.seen.longest_end = max(self.seen.longest_end, time.monotonic() - killed)
        ended = run.wait()
        if ended.exit_code == 0:  # it was at its end when the kill came
            return self._finish(ended)
        self._look_at(ended)

    def _wait(self, run: Started) -> None:
        if self.chance.random() < WHILE_BEGINNING:
            return time.sleep(self.chance.uniform(0, self.seconds_to_begin))
        began = time.monotonic()
        while run.under_way and not _trains((run.folder / "rank-0.out").read_text()):
            time.sleep(0.01)
        self.seconds_to_begin = time.monotonic() - began
        time.sleep(self.chance.uniform(0, SECONDS_OF_TRAINING))

    def _look_at(self, ended: Finished) -> None:
        self.seen.kills += 1
        assert not _children_of(self.forks), "an orphan"
        reached, root = _last_step(ended.output_dir), ended.output_dir / "checkpoints"
        if _trains(ended.stdout):
            self._check_resumed_from(ended.stdout)
        else:
            self.seen.before_the_first_step += 1
        self.seen.during_a_save += any(path.suffix for path in root.iterdir()) if root.exists() else 0
        newest = max(steps(root), default=0)
        assert all(verify(root / folder_name(step)) == [] for step in steps(root))
        lost = max(0, reached - newest)
        assert newest >= self.resumed_from and lost <= 2 * SAVED_EVERY, (
            f"step {reached} was reached, and {newest} was saved"
        )
        self.seen.most_steps_lost = max(self.seen.most_steps_lost, lost)
        self.resumed_from = newest

    def finish(self) -> None:
        """Let the run come to its end."""
        self._finish(_good(self._start(self.name).wait()))

    def _finish(self, run: Finished) -> None:
        self._check_resumed_from(run.stdout)
        assert [*partings(self.whole, run)] == []
        ours, theirs = weights(self.whole), weights(run)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            np.testing.assert_allclose(theirs[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
            difference = float(np.abs(theirs[name] - value).max())
            self.seen.largest_difference = max(self.seen.largest_difference, difference)
        assert _files(run.output_dir) == _files(self.whole.output_dir)
        self.seen.runs_finished += 1
        self.resumed_from, self.name = 0, f"run {self.seen.runs_finished + 1}"

    def _check_resumed_from(self, said: str) -> None:
        if "nothing left to do" in said:  # a rank was killed when the run had written that it is done
            assert self.resumed_from == NUM_STEPS, said
            return
        place = re.search(r"^resumed from .*, after step (\d+)$", said, re.MULTILINE)
        assert (int(place[1]) if place else 0) == self.resumed_from, said

    def _start(self, name: str) -> Started:
        run = self.forks.start(self.recipe, self.folder / name, self.how)
        while run.under_way and len([*run.folder.iterdir()]) < 4:  # before that a rank has nowhere to write to
            time.sleep(0.001)
        return run


def _write_recipe(folder: Path) -> Path:
    rows = [{"text": f"headline {i} rises " * (1 + i % 5)} for i in range(60)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "causal_lm"},
        model={"path": str(build_tiny_llama(folder / "model"))},
        data={"train": str(folder / "data.jsonl"), "cache_dir": str(folder / "cache")},
        optim={"lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.5, "schedule": "cosine", "warmup_steps": 5},
        train={"max_steps": NUM_STEPS, "global_batch_size": 4, "micro_batch_size": 2},
        checkpoint={"every": SAVED_EVERY},
    )


def _good(run: Finished) -> Finished:
    assert run.exit_code == 0, run.stderr[-4000:]
    return run


def _trains(said: str) -> bool:
    """Whether a launch has trained a step, by what it said."""
    return re.search(r"^step \d+/", said, re.MULTILINE) is not None


def _events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _last_step(folder: Path) -> int:
    return max((event["step"] for event in _events(folder) if event["event"] == "train"), default=0)


def _children_of(forks: Forks) -> list[psutil.Process]:
    return psutil.Process(forks.server.pid).children(recursive=True)


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--how", default="ddp", help="a file of accelerate_configs/")
    parser.add_argument("--seed", type=int, default=0, help="of ranks and moments")
    parser.add_argument("--minutes", type=float, default=1e9, help="kill no more after so long")
    chosen = parser.parse_args()
    ends = time.monotonic() + 60 * chosen.minutes
    with TemporaryDirectory() as folder, Forks() as forks:
        chaos = Chaos(forks, Path(folder), chosen.how, chosen.seed)
        while chaos.seen.kills < chosen.kills and time.monotonic() < ends:
            chaos.kill()
            print(json.dumps(asdict(chaos.seen)), flush=True)
        chaos.finish()
    print(json.dumps({"how": chosen.how, "seed": chosen.seed} | asdict(chaos.seen), indent=1))


if __name__ == "__main__":
    main()
