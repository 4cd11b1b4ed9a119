"""What a script refuses before any rank starts: in a process with the variables that Slurm sets."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onecurve.errors import LaunchError
from slurm.job import main, parse, rank_environment
from slurm.layout import Layout
from slurm.rank import check_layout
from slurm.scontrol import JobRecord, job_name, job_record
from tests.launching import ROOT, write_recipe

SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
ALONE = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "nodea", "SLURM_CPUS_ON_NODE": "4",
    "SLURM_JOB_CPUS_PER_NODE": "4",
}  # fmt: skip
BARE = {"PATH": "/usr/bin:/bin"}


def bash(*words, **environment):
    """Run a script as Slurm does, in its submission's directory; where it is refused at once."""
    return subprocess.run(
        ["bash", *words], cwd=ROOT, env=BARE | environment, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def batch(monkeypatch):
    """The environment of a batch script, with no scontrol to ask; signals as they were afterwards."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "ONECURVE_"))]:
        monkeypatch.delenv(name)
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    yield monkeypatch
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def recipe(tmp_path):
    return str(
        write_recipe(
            tmp_path / "recipe.yaml",
            output_dir="runs/x",
            task={"name": "causal_lm"},
            model={"path": "none"},
            data={"train": "none.jsonl"},
            train={"max_steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
        )
    )


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}], ids=["shell", "salloc"]
)
def test_outside_a_batch_job_a_script_says_to_submit_it(environment):
    done = bash("slurm/seeds.sbatch", "recipe.yaml", **environment)
    assert done.returncode == 2
    assert "slurm: submit this script with sbatch, also within salloc" in done.stdout
    assert done.stderr == ""


def test_a_wrong_environment_is_named(tmp_path):
    for path, said in [(tmp_path / "none", "there is no Python environment"), (tmp_path, "onecurve is not installed")]:
        if path == tmp_path:
            (path / "bin").mkdir()
            os.symlink("/usr/bin/python3", path / "bin" / "python")
        done = bash("slurm/single.sbatch", "recipe.yaml", **ALONE, ONECURVE_VENV=str(path))
        assert (done.returncode, done.stderr) == (2, ""), done.stderr
        assert said in done.stdout
        assert str(path) in done.stdout


def test_a_conda_prefix_is_an_environment_too(tmp_path):
    """It has no bin/activate."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    done = bash("slurm/single.sbatch", "nowhere.yaml", **ALONE, ONECURVE_VENV=str(tmp_path))
    assert (done.returncode, done.stderr) == (2, "")
    assert "slurm: nowhere.yaml: no such recipe" in done.stdout


def test_every_script_has_a_log_wherever_it_is_submitted_and_says_where_to_submit(tmp_path):
    """Slurm starts no job, and says nothing, whose log has no directory."""
    for script in SCRIPTS:
        (output,) = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH --output=")]
        assert "/" not in output, script
    done = subprocess.run(["bash", script], cwd=tmp_path, env=BARE | ALONE, capture_output=True, text=True)
    assert done.returncode == 2
    assert "submit from the repository's root" in done.stderr


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        ([], {}, "RECIPE"),
        (["RECIPE", "--train.max_stepz", "1"], {}, "train.max_stepz"),
        (["RECIPE", "--config_file", "zero2.yaml"], {}, "--config_file: must come before the recipe."),
        (["RECIPE", "--config_file=zero2.yaml"], {}, "--config_file: must come before the recipe."),
        (["--config_file", "zero9.yaml", "RECIPE"], {}, "--config_file: there is no file 'zero9.yaml'"),
        (["--config_file=zero9.yaml", "RECIPE"], {}, "--config_file: there is no file 'zero9.yaml'"),
        (["--config_file", "README.md", "RECIPE"], {}, "--config_file: 'README.md' "),
        (
            ["RECIPE"],
            {"ONECURVE_MAX_RESTARTS": "unlimited"},
            "ONECURVE_MAX_RESTARTS: must be a whole number; got 'unli",
        ),
        (["RECIPE"], {"SLURM_NTASKS": "2"}, "single.yaml' starts one process, but there are resources for 2 ranks"),
        (["RECIPE"], {"SLURM_GPUS_ON_NODE": "8"}, "8 rank(s) per node need as many CPUs, but a node has 4"),
    ],
)
def test_what_is_known_to_be_wrong_is_said_before_the_ranks_start(batch, recipe, capsys, words, variables, said):
    for name, value in variables.items():
        batch.setenv(name, value)
    words = [recipe if word == "RECIPE" else word for word in words]
    batch.chdir(ROOT)
    assert main(["accelerate_configs/single.yaml", *words]) == 2
    said_in = capsys.readouterr().out
    assert said in said_in
    assert "slurm: " in said_in


def test_without_scontrol_nothing_is_known_of_the_job_and_its_nodes_have_no_names(batch, tmp_path):
    batch.chdir(ROOT)
    batch.setenv("PATH", str(tmp_path))
    assert job_record("7") == JobRecord()
    with pytest.raises(LaunchError, match="names of the job's nodes: scontrol: No such file or directory"):
        rank_environment(Path("accelerate_configs/ddp.yaml"), Layout(nodes=2, ranks=1, cpus=1))


def test_a_launch_file_of_the_users_replaces_the_scripts(batch):
    batch.chdir(ROOT)
    zero3 = "accelerate_configs/zero3.yaml"
    for words in (["--config_file", zero3], [f"--config_file={zero3}"]):
        assert parse(["accelerate_configs/ddp.yaml", *words, "r.yaml", "--seed", "1"]) == (
            Path(zero3), ["r.yaml", "--seed", "1"],
        )  # fmt: skip


def test_each_task_of_an_array_has_its_own_seed_and_directory(batch, recipe, capsys):
    single = "accelerate_configs/single.yaml"
    assert main(["--each_seed", single, recipe]) == 2
    assert "this script needs an array, a task per seed. Submit it with sbatch --array=0-4." in capsys.readouterr().out
    batch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert parse(["--each_seed", single, recipe]) == (
        Path(single), [recipe, "--seed", "3", "--output_dir", "runs/x-seed-3"],
    )  # fmt: skip


def test_a_task_of_an_array_is_named_as_squeue_names_it(batch):
    assert job_name() == "7"
    batch.setenv("SLURM_ARRAY_JOB_ID", "7")
    batch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert job_name() == "7_0"


@pytest.mark.parametrize(("given", "code"), [("2(x2)", 0), ("2", 0), ("3,1", 2), ("2(x2),1", 2), ("1(x4)", 2)])
def test_ranks_that_srun_spread_in_another_way_do_not_start(monkeypatch, capsys, given, code):
    """Seen with --ntasks=4 for two nodes, of which one had three CPUs: it ran three ranks."""
    monkeypatch.setenv("SLURM_PROCID", "0")
    if code == 0:
        return check_layout("2", given)
    with pytest.raises(SystemExit) as ended:
        check_layout("2", given)
    assert ended.value.code == code
    assert f"srun started {given} ranks on the nodes, but each must run 2." in capsys.readouterr().out


def test_a_signal_while_a_rank_still_loads_waits_until_it_is_handled(tmp_path):
    """As srun starts it: a rank that a signal killed would look like one that crashed."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    (tmp_path / "train.py").write_text(
        "import os, signal\n"
        "names = ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGUSR2')\n"
        "for name in names: os.kill(os.getpid(), getattr(signal, name))\n"
        "heard = []\n"
        "for name in names: signal.signal(getattr(signal, name), lambda number, frame: heard.append(number))\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [getattr(signal, name) for name in names])\n"
        "print(len(heard), os.environ.get('RANK'), os.environ.get('LOCAL_RANK'))\n"
    )
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "MASTER_PORT")}
    for world, rank in (
        ({}, "None None"),
        ({"MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "4", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, "5 1"),
    ):
        slurm = {
            "SLURM_PROCID": "5",
            "SLURM_LOCALID": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        command = [sys.executable, "-m", "slurm.rank"]
        done = subprocess.run(command, cwd=tmp_path, env=inherited | slurm | world, capture_output=True, text=True)
        assert done.stdout == f"4 {rank}\n", done.stderr
