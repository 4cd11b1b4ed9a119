"""Kill -9 of whole runs that save after each step: nothing that loads is wrong; the curve has no gap, no repeat."""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onecurve.checkpoint import read_state, verify
from onecurve.checkpoint.difference import compare_tensors
from onecurve.checkpoint.folders import folder_name, steps
from onecurve.checkpoint.writer import PHASES
from tests.launching import Finished
from tests.resume.curves import partings
from tests.resume.forking import Forks, Started

pytestmark = pytest.mark.distributed

STEPS = 20
SAVING = ["--train.max_steps", str(STEPS), "--checkpoint.every", "1"]
# A run saves each step once, so it never moves one away
REACHED = [phase for phase in PHASES if phase != "moved-away"]
FIRST_RANK_ONLY = PHASES[PHASES.index("state") :]
LAYOUTS = [("python", 1), ("ddp", 2), ("zero2", 2)]


@dataclass
class Runs:
    """Runs of one recipe in one layout, each compared with the one that nobody killed."""

    forks: Forks
    recipe: Path
    how: str
    num_processes: int
    folder: Path
    moments: random.Random

    def __post_init__(self) -> None:
        self.whole = self.forks.train(*self._arguments("whole", "--checkpoint.keep", "1000"), **self._ranks)
        first, last = (self._saved(step).stat().st_mtime for step in (1, STEPS))
        self.seconds = last - first
        self.number, self.kills, self.hits = 0, 0, 0
        self._start_anew()

    @property
    def _ranks(self) -> dict[str, int]:
        return {"num_processes": self.num_processes}

    def _arguments(self, name: str, *overrides: str) -> list[Any]:
        return [self.recipe, self.folder / name, self.how, *SAVING, *overrides]

    def _saved(self, step: int) -> Path:
        return self.whole.output_dir / "checkpoints" / folder_name(step)

    def _start_anew(self) -> None:
        self.number += 1
        self.output_dir, self.newest = self.folder / f"killed {self.number}", 0

    def kill_at_a_random_moment(self) -> None:
        """Let a run begin or go on, and kill it at any moment of about a quarter of its steps."""
        told = self._metrics_file()
        run = self._go_on()
        while run.under_way and (self._metrics_file() == told or self._last_step() <= self.newest):
            time.sleep(0.005)
        time.sleep(self.moments.uniform(0, self.seconds / 4))
        if self._kill(run):
            self.newest = self.inspect(self.output_dir)
        else:
            self.finish()

    def kill_at(self, phase: str) -> None:
        """Let a run begin or go on, and kill it when one rank has come to a phase of the next save but one."""
        if self.newest + 2 > STEPS:
            self.finish()
        step = self.newest + 2
        rank = 0 if phase in FIRST_RANK_ONLY else self.moments.randrange(self.num_processes)
        mark = self.output_dir / "hangs"
        mark.unlink(missing_ok=True)
        run = self._go_on(hang=(phase, rank, step))
        while not mark.exists():
            assert run.under_way, run.wait().stderr
            time.sleep(0.005)
        assert self._kill(run)
        newest = self.inspect(self.output_dir)
        committed = PHASES.index(phase) >= PHASES.index("renamed")
        # A rank that is lost when its part is written need not keep rank 0 from the rename
        may_be = {False, True} if phase == "exchanged" and rank else {committed}
        assert newest - (step - 1) in may_be, f"killed at {phase} of step {step}, and {newest} is the newest"
        self.newest = newest

    def finish(self) -> None:
        """Go on to the end, and hold the run against the one that nobody killed."""
        run = self._go_on().wait()
        assert run.exit_code == 0, run.stderr[-4000:]
        self._check_where_it_went_on(run)
        assert not [*partings(self.whole, run, exactly=True)]
        assert self.inspect(self.output_dir) == STEPS
        self._start_anew()

    def _go_on(self, **hang: Any) -> Started:
        return self.forks.start(*self._arguments(self.output_dir.name), **self._ranks, **hang)

    def _metrics_file(self) -> int:
        """Tell the file that a run begins with from the one that the run before has left."""
        path = self.output_dir / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else 0

    def _last_step(self) -> int:
        return max([0, *(event["step"] for event in events(self.output_dir) if event["event"] == "train")])

    def _kill(self, run: Started) -> bool:
        """Kill one rank or all; return whether there was one left to kill."""
        alone = [[rank] for rank in range(self.num_processes)]
        run.kill(*self.moments.choice([*alone, []]))
        ended = run.wait()
        self._check_where_it_went_on(ended)
        if ended.exit_code == 0:
            return False
        self.kills += 1
        self.hits += any(path.suffix for path in (self.output_dir / "checkpoints").glob("*"))
        return True

    def _check_where_it_went_on(self, run: Finished) -> None:
        places = [event["step"] for event in events(run.output_dir) if event["event"] == "resume"]
        assert places[-1:] == ([self.newest] if self.newest else []), "it did not go on from the newest good one"

    def inspect(self, output_dir: Path) -> int:
        """Check what lies there under a checkpoint's name; return the newest one's step.

        Raises:
            AssertionError: One is damaged, or holds anything but what the run that nobody killed held at that step.
        """
        root = output_dir / "checkpoints"
        for step in steps(root):
            saved = root / folder_name(step)
            assert verify(saved) == [], "a kill made a checkpoint that is visible and bad"
            assert read_state(saved)["step"] == step
            differences = [*compare_tensors(self._saved(step), saved)]
            assert differences == [], f"{saved.name} is not what it should be"
        return max([0, *steps(root)])


def events(output_dir: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = output_dir / "metrics.jsonl"
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n"):
            yield json.loads(line)


@pytest.fixture
def runs(recipes, forks, tmp_path) -> Callable[[str, int], Runs]:
    return lambda how, ranks: Runs(forks, recipes["causal_lm"], how, ranks, tmp_path, random.Random(f"{how}{ranks}"))


@pytest.mark.parametrize(
    ("how", "ranks", "phases"), [("python", 1, ["half-written", "renamed"]), ("ddp", 2, ["state"])]
)
def test_killed_a_few_times(runs, how, ranks, phases):
    killed = runs(how, ranks)
    for phase in phases:
        killed.kill_at(phase)
    killed.kill_at_a_random_moment()
    killed.finish()


@pytest.mark.slow
@pytest.mark.parametrize(("how", "ranks"), LAYOUTS)
def test_killed_at_each_phase_twice(runs, record_property, how, ranks):
    killed = runs(how, ranks)
    for phase in [*REACHED, *REACHED]:
        killed.kill_at(phase)
    killed.finish()
    record_property("kills", killed.kills)
    record_property("kills that left a half-made checkpoint", killed.hits)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "ranks"), LAYOUTS)
def test_killed_at_seventeen_random_moments(runs, record_property, how, ranks):
    killed = runs(how, ranks)
    while killed.kills < 17:
        killed.kill_at_a_random_moment()
    killed.finish()
    record_property("kills", killed.kills)
    record_property("kills that left a half-made checkpoint", killed.hits)
    assert killed.hits, "no save was half-made at any of those moments"


def test_the_inspection_sees_a_checkpoint_that_loads_and_is_wrong(runs, forks, tmp_path):
    killed = runs("python", 1)
    other = forks.train(*killed._arguments("other", "--seed", "1", "--train.max_steps", "1"))
    with pytest.raises(AssertionError, match="step-00000001 is not what it should be"):
        killed.inspect(other.output_dir)
    (other.output_dir / "checkpoints" / "step-00000001" / "state.json").write_text("{}")
    with pytest.raises(AssertionError, match="visible and bad"):
        killed.inspect(other.output_dir)
