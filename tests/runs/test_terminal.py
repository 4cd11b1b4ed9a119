"""What a user at a terminal sees: every line is ours, whatever upstream has to say."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path
from time import monotonic

import pytest

from tests.launching import ROOT, command, environment

pytestmark = pytest.mark.distributed

PATIENCE_SECONDS = 540
SHORT = ["--train.epochs", "null", "--train.max_steps", "3", "--eval.every", "2", "--train.micro_batch_size", "8"]
TRAINING = [
    r"(model|device|note|trained|counts|new|batch|threads|labels|train|eval|test|columns|items|example) {3,}\S.*",
    r"(eval|test) at step \d+:( +\w+ -?\d+\.\d{4})+",
    r"model of step \d+: .*/model",
    r" *\d+%\|[^|]*\| \d+/3 \[.*(step/s|s/step)(, loss .* tokens/s)?\]",
]
COMPARISON = [
    r"test split, 150 texts +accuracy  macro-F1",
    r"(trained|untrained|always '(negative|neutral|positive)') +\d\.\d{3} +\d\.\d{3}",
    r"model   .*/model",
    r'try it  .*onecurve predict .*/model ".*"',
]


def at_a_terminal(words: list[str], **variables: str) -> str:
    """Run a command in a pseudo-terminal, as from a shell that has set only `variables`, and return what is shown."""
    set_for_tests = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    given = {name: value for name, value in environment().items() if name not in set_for_tests}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))  # rows, columns
    ends, shown = monotonic() + PATIENCE_SECONDS, b""
    with subprocess.Popen(words, cwd=ROOT, env=given | variables, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        while block := read(ours, ends):
            shown += block
        if monotonic() > ends:
            process.kill()
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0, text
    return text


def read(terminal: int, ends: float) -> bytes:
    """Return what comes next; nothing at the end, or when it is time."""
    try:
        return os.read(terminal, 65536) if select.select([terminal], [], [], max(0, ends - monotonic()))[0] else b""
    except OSError:  # what Linux has for an end here
        return b""


def foreign(text: str, ours: list[str]) -> list[str]:
    """Return the lines that none of the patterns describe whole; a bar's states are lines too."""
    lines = filter(str.strip, re.split(r"[\r\n]+", text))
    return [line for line in lines if not any(re.fullmatch(pattern, line) for pattern in ours)]


def recipe(tiny_bert: Path, folder: Path) -> list[str]:
    """The quickstart's, but for the model and the length."""
    places = ["--output_dir", str(folder / "run"), "--data.cache_dir", str(folder / "cache")]
    return ["recipes/quickstart.yaml", "--model.path", str(tiny_bert), *places, *SHORT]


@pytest.fixture(scope="module")
def trained(tiny_bert, tmp_path_factory):
    """The folder of a run, and what was shown of it."""
    folder = tmp_path_factory.mktemp("terminal")
    shown = at_a_terminal([sys.executable, "train.py", *recipe(tiny_bert, folder), "--train.resume", "never"])
    return folder / "run", shown


def test_the_quickstarts_training(trained):
    _, shown = trained
    assert foreign(shown, TRAINING) == []
    assert "3/3 [" in shown and "model of step " in shown


def test_the_quickstarts_comparison(trained):
    folder, _ = trained
    shown = at_a_terminal([sys.executable, "quickstart/compare.py", str(folder)])
    assert foreign(shown, COMPARISON) == []
    assert [pattern for pattern in COMPARISON if not re.search(pattern, shown)] == []


def test_the_quickstarts_prediction(trained):
    folder, _ = trained
    shown = at_a_terminal([sys.executable, "-m", "onecurve", "predict", str(folder / "model"), "Shares slide"])
    assert re.fullmatch(r"(negative|neutral|positive) \d\.\d{3}\tShares slide\r\n", shown)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "variables"),
    [
        ([*command("single"), "train.py"], {}),
        ([*command("ddp"), "train.py"], {}),
        # Accelerate's launcher for DeepSpeed, and torchrun, say something of their own unless these are set (README)
        ([*command("zero2"), "train.py"], {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}),
        (
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"],
            {"OMP_NUM_THREADS": "1"},
        ),
        ([sys.executable, "-m", "onecurve", "train", "--launch", "ddp"], {}),
        ([sys.executable, "-m", "onecurve", "train", "--launch", "zero2"], {}),
    ],
    ids=["single", "ddp", "zero2", "torchrun", "onecurve-ddp", "onecurve-zero2"],
)
def test_launched(tiny_bert, tmp_path, words, variables):
    shown = at_a_terminal([*words, *recipe(tiny_bert, tmp_path)], **variables)
    assert foreign(shown, TRAINING) == []
    assert "3/3 [" in shown and "model of step " in shown


@pytest.mark.parametrize(
    "line",
    [
        "[2026-01-01 00:00:00,000] [WARNING] [real_accelerator.py:213:get_accelerator] Setting accelerator to CPU.",
        "Writing model shards:   0%|          | 0/1 [00:00<?, ?it/s]",
        "Failed to load CPU gemm_4bit_forward",
        "W1125 23:27:15.774000 2073 torch/distributed/run.py:874] *****",
    ],
)
def test_a_line_of_upstreams_is_seen(line):
    assert foreign(f"model     x: full\r\n{line}\r\n", TRAINING) == [line]
