"""`onecurve train`: ranks started on this machine, signals passed on to them, train.py's own exit code returned."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from onecurve.errors import LaunchError
from onecurve.launching import Launch, LaunchFile, find_launch_file, launch
from onecurve.machine import files
from tests.launching import ROOT, environment, write_recipe

TRAIN = [sys.executable, "-m", "onecurve", "train"]
ROWS = [{"text": f"headline {i}", "label": ("up", "down")[i % 2]} for i in range(32)]


ANSWERS = "import os, signal, sys, time\nsignal.pthread_sigmask(signal.SIG_SETMASK, [])"


class TwoRanks(LaunchFile):
    """What a launch file comes to where Accelerate has nothing to add."""

    def environment(self):
        return {}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Launch two ranks of a script in train.py's place."""
    monkeypatch.setattr(files, "root", lambda: tmp_path)

    def started(script, before=ANSWERS):
        (tmp_path / "train.py").write_text(f"{before}\nrank = int(os.environ['RANK'])\n{script}")
        launched = Launch([], TwoRanks(tmp_path / "x.yaml", 2, False, None))
        launched.start()
        return launched

    return started


KILLS_ITSELF = "os.kill(os.getpid(), signal.SIGKILL)"


TELLS_RANK_0 = """
told = os.path.join(os.path.dirname(__file__), 'rank 1')
if rank:
    open(told + '.writing', 'w').write(str(os.getpid()))
    os.rename(told + '.writing', told)
while not os.path.exists(told):
    time.sleep(0.01)
"""
AFTER_RANK_1 = f"{TELLS_RANK_0}\nwhile rank == 0 and os.path.exists(f'/proc/{{open(told).read()}}'): time.sleep(0.01)\n"
"""Rank 0 goes on once the launcher has seen rank 1 end."""


@pytest.mark.parametrize(
    ("script", "code", "codes"),
    [
        ("sys.exit(0)", 0, {0: 0, 1: 0}),
        ("sys.exit(75)", 75, {0: 75, 1: 75}),
        # Rank 1 has nothing to add to a user's mistake
        ("time.sleep(3600 * rank)\nsys.exit(2)", 2, {0: 2, 1: -signal.SIGTERM}),
        (f"if rank == 0: {KILLS_ITSELF}\nsys.exit(3)", 3, {0: -signal.SIGKILL, 1: 3}),
        (f"{AFTER_RANK_1}if rank: {KILLS_ITSELF}\nsys.exit(3)", 3, {0: 3, 1: -signal.SIGKILL}),
        (f"{AFTER_RANK_1}sys.exit([3, 1][rank])", 1, {0: 3, 1: 1}),  # the first to fail is why the other does
        (KILLS_ITSELF, 137, dict.fromkeys(range(2), -signal.SIGKILL)),
    ],
)
def test_the_code_is_that_of_the_first_rank_that_failed_by_itself(start, script, code, codes):
    launched = start(script)
    assert launched.wait() == code
    assert launched.codes == codes
    assert launched.reason(code).startswith("train.py was killed by SIGKILL") == (code == 137)


def test_ranks_that_do_not_end_after_another_failed_are_ended(start, monkeypatch):
    monkeypatch.setattr(launch, "_SECONDS_TO_SAY_WHY", 0.5)
    monkeypatch.setattr(launch, "_SECONDS_TO_LEAVE", 0.5)
    launched = start(
        f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{TELLS_RANK_0}\nif rank: time.sleep(3600)\nsys.exit(3)"
    )
    assert launched.wait() == 3
    assert launched.codes == {0: 3, 1: -signal.SIGKILL}


def test_ranks_form_one_world_and_know_their_launcher(start, tmp_path):
    start(
        "import json\nmine = {k: v for k, v in os.environ.items() if k.endswith(('RANK', 'WORLD_SIZE', 'LAUNCHED'))\n"
        "        or k.startswith('MASTER_')}\n"
        "open(f'{os.path.dirname(__file__)}/{rank}.json', 'w').write(json.dumps(mine))"
    ).wait()
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    ports = {rank.pop("MASTER_PORT") for rank in told}
    assert len(ports) == 1
    same = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "ONECURVE_LAUNCHED": "1"}
    assert told == [{**same, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def test_a_signal_reaches_every_rank_even_before_it_can_answer(start, tmp_path):
    launched = start(
        "seen = []\ntime.sleep(1)\nsignal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])\nsys.exit(75 if seen else 1)",
        before="import os, signal, sys, time",
    )
    launched.send(signal.SIGUSR1)  # while they sleep
    assert launched.wait() == 75
    assert launched.codes == {0: 75, 1: 75}


def test_after_a_signal_nothing_starts(start):
    launched = Launch([], TwoRanks(ROOT / "x.yaml", 2, False, None))
    launched.send(signal.SIGTERM)
    launched.start()
    assert (launched.wait(), launched.processes) == (75, [])
    assert "before anything had begun" in launched.reason(75)


def test_an_interrupt_while_accelerate_is_asked_is_no_fault_of_the_launch_file(start, tmp_path):
    class Interrupted(LaunchFile):
        def environment(self):
            launched.send(signal.SIGINT)
            raise LaunchError("accelerate launch was interrupted too")

    launched = Launch([], Interrupted(tmp_path / "x.yaml", 2, False, None))
    launched.start()
    assert (launched.wait(), launched.processes) == (75, [])


def test_leaving_the_block_by_an_error_leaves_no_rank(start):
    launched = start("time.sleep(60)")
    with pytest.raises(ZeroDivisionError), launched:
        raise ZeroDivisionError
    assert all(process.poll() is not None for process in launched.processes)


def test_our_launch_files_name_their_deepspeed_configs_wherever_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_launch_file("zero2", None)
    assert (found.num_processes, found.is_one_process) == (2, False)
    assert found.path == ROOT / "accelerate_configs" / "zero2.yaml"
    assert found.deepspeed_config == ROOT / "ds_configs" / "zero2.json"
    assert find_launch_file("ddp", 4).num_processes == 4
    assert find_launch_file("single", None).is_one_process
    assert find_launch_file(None, None) is None


def test_the_working_directory_s_own_launch_files_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("accelerate_configs", "ds_configs"):
        (tmp_path / folder).mkdir()
    text = (ROOT / "accelerate_configs" / "zero2.yaml").read_text().replace("num_processes: 2", "num_processes: 3")
    (tmp_path / "accelerate_configs" / "zero2.yaml").write_text(text)
    (tmp_path / "mine.yaml").write_text(text.replace("zero2.json", "mine.json"))
    with pytest.raises(LaunchError, match=r"names 'ds_configs/zero2\.json', and there is no file"):
        find_launch_file("zero2", None)
    for name in ("zero2", "mine"):
        (tmp_path / "ds_configs" / f"{name}.json").write_text("{}")
    assert find_launch_file("zero2", None).num_processes == 3
    assert find_launch_file("./mine.yaml", None).deepspeed_config == tmp_path / "ds_configs" / "mine.json"


@pytest.mark.parametrize(
    ("name", "num_processes", "variables", "said"),
    [
        ("zer2", None, {}, "--launch: there is no launch file 'zer2'. Did you mean 'zero2'?"),
        ("./zero2.yaml", None, {}, "--launch: there is no file './zero2.yaml'."),
        (
            "multinode",
            None,
            {},
            "is for 2 machines, but onecurve train starts ranks on one. On each machine: ",
        ),
        ("single", 2, {}, "starts one process, but --num_processes is 2"),
        ("ddp", 0, {}, "num_processes must be a whole number above 0; got 0"),
        (None, 2, {}, "--num_processes: is 2, but no launch file is given"),
        ("ddp", None, {"WORLD_SIZE": "2"}, "WORLD_SIZE is 2: each of these processes would start"),
        ("./torn.yaml", None, {}, "'torn.yaml' cannot be read: "),
        ("./list.yaml", None, {}, "'list.yaml' has no settings"),
    ],
)
def test_a_launch_that_cannot_be_is_one_message(tmp_path, monkeypatch, name, num_processes, variables, said):
    monkeypatch.chdir(tmp_path)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    (tmp_path / "torn.yaml").write_text("distributed_type: [")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(LaunchError) as refused:
        find_launch_file(name, num_processes)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_what_accelerate_refuses_is_one_message(tmp_path):
    (tmp_path / "odd.yaml").write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nno_such: 1\n")
    found = find_launch_file(str(tmp_path / "odd.yaml"), 2)
    with pytest.raises(LaunchError, match=r"accelerate launch rejects .*no_such") as refused:
        found.environment()
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_accelerate_is_asked_for_what_it_tells_ranks(tmp_path):
    told = find_launch_file("zero2", None).environment()
    assert told["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert told["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == str(ROOT / "ds_configs" / "zero2.json")
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "PYTHONPATH"} & told.keys()


@pytest.fixture
def recipe(tmp_path, tiny_bert):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return write_recipe(
        tmp_path / "recipe.yaml",
        output_dir="run",
        task={"name": "text_classification"},
        model={"path": str(tiny_bert)},
        data={"train": "rows.jsonl", "cache_dir": "cache"},
        train={"max_steps": 4, "global_batch_size": 8, "micro_batch_size": 4},
        checkpoint={"every": 2},
    )


def run(folder, *words):
    done = subprocess.run([*TRAIN, *words], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def told(folder):
    return json.loads((folder / "run" / "status.json").read_text())


def test_one_process_trains_in_any_folder(recipe, tmp_path):
    code, out, err = run(tmp_path, "recipe.yaml")
    assert (code, err) == (0, "")
    assert "step 4/4" in out
    code, out, err = run(tmp_path, "recipe.yaml")
    assert (code, out, err) == (0, "run is finished, at step 4: nothing left to do.\n", "")
    code, _, err = run(tmp_path, "recipe.yaml", "--data.train", "nowhere.jsonl", "--output_dir", "other")
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith("train.py: data.train: ")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("form", ["ddp", "zero2"])
def test_ranks_train_and_their_code_is_kept(recipe, tmp_path, form):
    code, out, err = run(tmp_path, "recipe.yaml", "--launch", form)
    assert (code, err) == (0, ""), err
    assert out.count("step 4/4") == 1
    assert "2 rank(s)" in out
    missing = ("--data.train", "nowhere.jsonl", "--output_dir", "other")
    code, _, err = run(tmp_path, "recipe.yaml", "--launch", form, *missing)
    assert (code, err.count("\n")) == (2, 1), err
    fails = ("--optim.lr", "1e30", "--output_dir", "other")
    code, _, err = run(tmp_path, "recipe.yaml", "--launch", form, *fails)
    assert code == 3, err
    assert "Traceback" not in err
    assert json.loads((tmp_path / "other" / "status.json").read_text())["exit_code"] == 3


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("form", "name"), [(None, "SIGUSR1"), ("ddp", "SIGTERM"), ("ddp", "SIGINT")])
def test_a_signalled_run_saves_says_so_and_goes_on(recipe, tmp_path, form, name):
    words = ["recipe.yaml", "--train.max_steps", "2000", *(["--launch", form] if form else [])]
    process = subprocess.Popen(
        [*TRAIN, *words], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not any(line.startswith("step 50/") for line in process.stdout):
        assert process.poll() is None
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert f"by {name}; launch again to resume" in out
    assert set(err.splitlines()) == {f"train.py: {name}: saving after this step, then stopping"}
    status = told(tmp_path)
    assert (status["status"], status["exit_code"]) == ("stopped", 75)
    stop = ("--train.stop_after", str(status["step"] + 1))
    code, out, err = run(tmp_path, *words, *stop)
    assert code == 0, err
    assert f"after step {status['step']}" in out


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_do_not_outlive_a_launch_that_is_killed(recipe, tmp_path):
    process = subprocess.Popen(
        [*TRAIN, "recipe.yaml", "--train.max_steps", "2000", "--launch", "ddp"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    while not any(line.startswith("step 50/") for line in process.stdout):
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while told(tmp_path)["status"] == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert told(tmp_path)["status"] == "stopped"
