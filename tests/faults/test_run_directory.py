"""Run directories that are in use, read-only, full, gone, or on a machine whose clock jumps: real launches."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.launching import ROOT, Finished, command, environment, launch, write_recipe
from tests.tiny_models import build_tiny_bert

PATIENCE_SECONDS = 300


def can_mount():
    tried = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    return tried.returncode == 0


needs_mounts = pytest.mark.skipif(not (shutil.which("unshare") and can_mount()), reason="may not mount file systems")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    rows = [{"text": f"headline {i} rises", "label": ("up", "down")[i % 2]} for i in range(40)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "text_classification"},
        model={"path": str(build_tiny_bert(folder / "bert"))},
        data={"train": str(folder / "data.jsonl"), "cache_dir": str(folder / "cache")},
        train={"max_steps": 6, "global_batch_size": 4, "micro_batch_size": 4},
    )


ENDLESS = ["--train.max_steps", "1000000", "--checkpoint.every", "5"]


@contextmanager
def running(recipe, output_dir, *overrides, until):
    """Start train.py and wait for something to show; end it whatever happens."""
    words = [*command("python"), "train.py", str(recipe), "--output_dir", str(output_dir), *overrides]
    with subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            ends = monotonic() + PATIENCE_SECONDS
            while not until():
                assert process.poll() is None, process.stderr.read()
                assert monotonic() < ends
                sleep(0.05)
            yield process
        finally:
            process.kill()


def finish(process, output_dir):
    stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    return Finished(output_dir, process.returncode, stdout, stderr)


def said(run):
    """What a run that failed had to say, a line each."""
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    assert [line for line in lines if line.startswith("train.py: ")] == lines, run.stderr
    return lines


def said_once(run):
    """The one message of a run that failed."""
    (line,) = said(run)
    return line


def test_a_second_run_is_refused_and_a_killed_one_does_not_block_its_successor(recipe, tmp_path):
    folder = tmp_path / "run"
    with running(recipe, folder, *ENDLESS, until=(folder / "checkpoints" / "latest").exists) as first:
        before = (folder / "config.yaml").read_bytes()
        for overrides in (ENDLESS, ["--train.resume", "never"]):
            second = launch(recipe, folder, "python", *overrides)
            assert second.exit_code == 2
            assert f"is in use by another run: process {first.pid} on " in said_once(second)
        assert (folder / "config.yaml").read_bytes() == before
        assert first.poll() is None
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert json.loads((folder / "lock").read_text())["pid"] == first.pid
    latest = int((folder / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    started = monotonic()
    after = launch(recipe, folder, "python", *ENDLESS, "--train.stop_after", str(latest + 5))
    assert after.exit_code == 0, after.stderr
    assert after.events("resume")[-1]["step"] >= latest
    assert "watching" not in after.stderr, f"it waited, of {monotonic() - started:.0f} s"
    assert not (folder / "lock").exists()
    assert [event["step"] for event in after.events("train")] == list(range(1, after.status["step"] + 1))


@pytest.mark.parametrize("how", ["ended well", "a mistake found late"])
def test_a_run_that_ends_lets_go(recipe, tmp_path, how):
    overrides = [] if how == "ended well" else ["--peft.method", "lora", "--peft.target_modules", "[nosuch]"]
    ended = launch(recipe, tmp_path / "run", "python", *overrides)
    assert ended.exit_code == (2 if overrides else 0), ended.stderr
    assert not (tmp_path / "run" / "lock").exists()


@needs_mounts
def test_a_read_only_directory_is_said_before_anything_is_read(recipe, tmp_path):
    inside = tmp_path / "disk"
    inside.mkdir()
    for output_dir in (inside, inside / "new" / "run"):
        ended = in_mount(f"mount -t tmpfs -o ro tmpfs {inside}", recipe, output_dir, "--model.path", "./nowhere")
        assert ended.exit_code == 2
        assert f"output_dir: '{output_dir}' cannot be written: Read-only file system." in said_once(ended)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_directory_without_permission_is_said(tmp_path, mode):
    closed = Path(f"/tmp/onecurve-{os.getpid()}-{mode:o}")
    closed.mkdir()
    closed.chmod(mode)
    script = (
        "import os, sys; from pathlib import Path\n"
        "from onecurve.errors import UserError; from onecurve.run.directory import RunDirectory\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: RunDirectory(Path(sys.argv[1])).check('auto', {})\n"
        "except UserError as error: print(error)\n"
    )
    try:
        for folder in (closed, closed / "a" / "b"):
            done = subprocess.run(
                [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
            )
            assert f"output_dir: '{folder}' cannot be written: Permission denied." in done.stdout
    finally:
        closed.rmdir()


def in_mount(mount, recipe, output_dir, *overrides):
    """Launch where a mount is in place that nobody else sees, and that ends with the run."""
    words = [*command("python"), "train.py", str(recipe), "--output_dir", str(output_dir), *overrides]
    inside = ["unshare", "-m", "bash", "-c", f'{mount} && exec "$@"', "bash", *words]
    done = subprocess.run(inside, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=540, check=False)
    return Finished(output_dir, done.returncode, done.stdout, done.stderr)


@pytest.fixture
def disk(tmp_path):
    """A small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk):
    with pytest.raises(OSError, match="No space"), open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def has_content(path):
    return path.exists() and path.stat().st_size > 0


@needs_mounts
@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        pytest.param(
            ["--train.max_steps", "1000000"],
            ["metrics.jsonl' cannot be written: No space left on device"],
            marks=pytest.mark.slow,
        ),
        (
            ["--train.max_steps", "300", "--tracking.log_every", "100"],
            ["The checkpoint of step 300 could not be saved: ", "model is not there. It could not be written: "],
        ),
    ],
)
def test_a_disk_that_others_fill_ends_the_run_with_one_message_for_each_thing_not_written(
    recipe, disk, overrides, named
):
    folder = disk / "run"
    with running(recipe, folder, *overrides, until=lambda: has_content(folder / "metrics.jsonl")) as process:
        fill(disk)
        ended = finish(process, folder)
    for line, part in zip(said(ended), named, strict=True):
        assert part in line
    assert "There is no checkpoint: launched again, the run starts from the beginning." in line
    assert ended.exit_code == 3


@needs_mounts
def test_what_was_saved_before_the_disk_filled_up_serves_the_next_launch(recipe, disk):
    folder = disk / "run"
    overrides = [*ENDLESS, "--checkpoint.keep", "1"]
    with running(recipe, folder, *overrides, until=(folder / "checkpoints" / "latest").exists) as process:
        fill(disk)
        ended = finish(process, folder)
    assert ended.exit_code == 3
    assert "No space left on device" in said_once(ended)
    (disk / "filler").unlink()
    latest = int((folder / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    after = launch(recipe, folder, "python", *overrides, "--train.stop_after", str(latest + 2))
    assert after.exit_code == 0, after.stderr
    assert after.events("resume")[-1]["step"] >= latest  # a checkpoint is complete before `latest` names it
    assert [event["step"] for event in after.events("train")] == list(range(1, after.status["step"] + 1))


@pytest.mark.parametrize("first", ["metrics", "checkpoint"])
def test_a_directory_that_vanishes_ends_the_run_and_is_not_begun_anew(recipe, tmp_path, first):
    folder, moved = tmp_path / "run", tmp_path / "moved"
    overrides = ENDLESS if first == "metrics" else [*ENDLESS, "--tracking.log_every", "900000"]
    with running(recipe, folder, *overrides, until=(folder / "checkpoints" / "latest").exists) as process:
        folder.rename(moved)
        ended = finish(process, folder)
    assert ended.exit_code == 3
    assert "No such file or directory" in said_once(ended)
    assert not folder.exists()
    assert (moved / "checkpoints" / "latest").exists()


def test_a_save_and_the_metrics_that_fail_together_are_one_message(forks, recipe, tmp_path):
    folder, moved = tmp_path / "run", tmp_path / "moved"
    words = [str(recipe), "--output_dir", str(folder), *ENDLESS]
    ended = forks.run_script("tests.faults.vanishing", "python", str(moved), *words)
    assert ended.exit_code == 3
    (message,) = [line for line in ended.stderr.splitlines() if line.startswith("train.py: ")]
    assert "metrics.jsonl' cannot be written: No such file or directory." in message
    assert not folder.exists()


@pytest.mark.slow
def test_clocks_that_jump_decide_nothing(recipe, tmp_path, monkeypatch):
    """Each look at the wall clock is a day earlier than the one before, and file times tell lies."""
    (tmp_path / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "now, days = time.time, itertools.count()\n"
        "time.time = lambda: now() - 86400 * next(days)\n"
        "time.time_ns = lambda: int(time.time() * 1e9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = tmp_path / "run"
    keeping = ["--checkpoint.every", "2", "--checkpoint.keep", "9"]
    assert launch(recipe, folder, "python", *keeping, "--train.stop_after", "4").exit_code == 0
    for age, entry in enumerate(sorted((folder / "checkpoints").rglob("*"), reverse=True)):
        os.utime(entry, (10**9 + age, 10**9 + age))
    (folder / "checkpoints" / "latest").unlink()
    after = launch(recipe, folder, "python", *keeping)
    assert after.exit_code == 0, after.stderr
    assert [event["step"] for event in after.events("resume")] == [4]
    assert [event["step"] for event in after.events("train")] == [1, 2, 3, 4, 5, 6]
