"""`pytest --seconds N`: tests that have not begun when the time is up are left out and counted."""

import subprocess
import sys

import pytest

from tests.launching import ROOT


def run(*options: str) -> str:
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "tests/machine"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_when_the_time_is_up_no_test_begins_and_their_number_is_told():
    said = run("--seconds", "0")
    assert " passed" not in said and "\n0 tests left out" not in said
    assert " tests left out: 0 s were up (--seconds)" in said


@pytest.mark.slow
def test_each_file_has_its_turn():
    files = [line.partition("::")[0] for line in run("--seconds", "60", "--collect-only").splitlines() if "::" in line]
    assert len(set(files)) > 1
    assert len(set(files[: len(set(files))])) == len(set(files))
