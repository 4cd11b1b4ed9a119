"""A signal before the run has begun ends it as an interruption, not as a crash, and leaves the directory as it was."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launching import ROOT


def takes(pid, number):
    """Whether a process has a handler of its own for a signal."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize(("name", "rank"), [("SIGTERM", 0), ("SIGUSR1", 0), ("SIGTERM", 1)])
def test_a_signal_before_the_run_has_begun(tmp_path, name, rank):
    number = signal.Signals[name]
    recipe = ROOT / "recipes" / "quickstart.yaml"
    command = [sys.executable, "train.py", str(recipe), "--output_dir", str(tmp_path / "run")]
    environment = os.environ | {"RANK": str(rank)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    while not takes(process.pid, number) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 75, said
    # A launcher ends the other ranks so, after a mistake that rank 0 has told
    assert said.count("nothing has begun") == (rank == 0)
    assert not (tmp_path / "run").exists()
