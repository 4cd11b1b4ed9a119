"""The first run on a GPU, rehearsed: what has a result is not run again, and nothing that fails stops the rest."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from zipfile import ZipFile

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_first
from gpu_bench import Bench, Failed, OutOfTime, Run, Skipped
from gpu_parts import PARTS, run_tests

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run a call over parts of the test's own; return its exit code and each part's status."""
    path = tmp_path / "results.json"

    def run(parts, *words):
        monkeypatch.setattr(gpu_first, "PARTS", parts)
        code = gpu_first.main(["--json", str(path), "--seconds", "200", *words])
        return code, {name: result["status"] for name, result in json.loads(path.read_text())["results"].items()}

    run.path = path
    return run


def raising(error):
    def part(bench):
        raise error

    return part


def test_what_has_a_result_is_not_run_again_and_what_fails_stops_nothing(call):
    ran = []
    parts = {
        1: {"good": lambda bench: ran.append("good") or {"number": 3}, "no": raising(Failed("wrong mask", {"at": 7}))},
        2: {"bug": raising(KeyError("loss")), "cut": raising(OutOfTime()), "absent": raising(Skipped("no torchao"))},
        3: {"last": lambda bench: ran.append("last") or {}},
    }
    states = {"1 good": "passed", "1 no": "failed", "2 bug": "failed", "2 cut": "unfinished", "2 absent": "skipped"}
    assert call(parts) == (1, {**states, "3 last": "passed"})
    assert ran == ["good", "last"]
    results = json.loads(call.path.read_text())["results"]
    assert results["1 good"]["numbers"] == {"number": 3} and results["1 good"]["seconds"] >= 0
    assert (results["1 no"]["numbers"], results["1 no"]["error"]) == ({"at": 7}, "wrong mask")
    assert results["2 bug"]["error"] == "KeyError: 'loss'"

    parts[2]["cut"] = parts[1]["no"] = lambda bench: ran.append("mended") or {}
    assert call(parts)[1] == {**states, "2 cut": "passed", "3 last": "passed"}
    assert ran == ["good", "last", "mended"]
    parts[2]["bug"] = lambda bench: {}
    assert call(parts, "--again") == (0, {**dict.fromkeys(states, "passed"), "2 absent": "skipped", "3 last": "passed"})
    assert len(json.loads(call.path.read_text())["calls"]) == 3


def test_one_part_alone_can_be_asked_for(call):
    parts = {1: {"one": lambda bench: {}}, 2: {"two": lambda bench: {}}}
    assert call(parts, "--part", "2") == (0, {"2 two": "passed"})


def test_without_time_nothing_begins_and_a_part_that_never_ends_is_given_up(call, monkeypatch):
    endless = {1: {"endless": lambda bench: bench.run("-c", "import time; time.sleep(36000)") and {}}}
    assert call(endless, "--rehearse", "--seconds", "9") == (1, {})
    monkeypatch.setitem(gpu_first.LEAST_SECONDS, True, 0)  # it begins, however long the start takes here
    for status in ("unfinished", "unfinished", "failed"):
        assert call(endless, "--rehearse", "--seconds", "10.5") == (1, {"1 endless": status})


def test_a_rehearsal_is_not_taken_for_a_result(call):
    parts = {1: {"one": lambda bench: {"device": bench.device}}}
    call(parts, "--rehearse")
    assert json.loads(call.path.read_text())["results"]["1 one"]["numbers"] == {"device": "cpu"}
    with pytest.raises(SystemExit, match="of a rehearsal"):
        call(parts)


@pytest.fixture
def bench(tmp_path):
    return Bench(sys.executable, tmp_path, True, time.monotonic() + 200, {"PYTHONPATH": str(ROOT / "src")})


def test_what_a_failed_command_said_is_kept(bench):
    with pytest.raises(Failed, match=r"(?s)exit code 3 of .*train.py: out of memory"):
        bench.run("-c", "import sys; print('train.py: out of memory'); sys.exit(3)")
    assert bench.has("torch") and not bench.has("no_such_package")


def test_the_outcome_of_tests_is_read(bench, tmp_path):
    written = tmp_path / "test_written.py"
    written.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'masks differ'\n"
        "def test_other(): pytest.skip('no torchao')\n"
        "@pytest.mark.gpu\n"
        "def test_on_gpu(): assert False\n"
    )
    with pytest.raises(Failed, match="1 of 3 tests failed") as failed:
        run_tests(str(written))(bench)
    numbers = failed.value.numbers
    assert numbers["passed"] == 1 and numbers["skipped"] == {"test_other": "no torchao"}
    assert "masks differ" in numbers["failed"]["test_bad"]
    assert run_tests(str(written), "-k", "good")(bench)["passed"] == 1
    with pytest.raises(Skipped):
        run_tests(str(written), "-k", "other")(bench)


@pytest.mark.slow
def test_what_is_missing_comes_from_a_folder_of_wheels_and_the_rest_is_seen(bench, tmp_path, monkeypatch):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with ZipFile(wheels / "onlyhere-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("onlyhere.py", "number = 3\n")
        about = "onlyhere-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: onlyhere\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    # Out of range, as a machine's packages may be; not to be had at all; and torch, which stays as it is
    monkeypatch.setattr(gpu_first, "_requirements", lambda: ["onlyhere>=2", "nowhere>=1", "torch>=99"])
    monkeypatch.setattr(gpu_first, "OPTIONAL", ())
    told = gpu_first.set_up(bench, wheels)
    assert list(told["not installed"]) == ["nowhere>=1"]
    assert bench.python == told["python"] != sys.executable
    assert "3" in bench.run("-c", "import onlyhere, onecurve; print(onlyhere.number)").stdout
    assert bench.has("torch") and bench.has("accelerate")


def test_a_run_is_told_by_its_metrics(tmp_path):
    lines = [{"event": "micro_batch_size", "found": 8}]
    lines += [{"event": "train", "loss": 3.0 - step, "tokens_per_second": 100 * step} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = Run(tmp_path, 5.0).numbers()
    assert told == {"losses": [2.0, 1.0, 0.0], "tokens per second": 300, "seconds": 5.0, "micro_batch_size": 8}


def test_every_file_of_tests_for_gpus_is_in_a_part():
    named = {str(word) for part in PARTS[2].values() for cell in part.__closure__ for word in cell.cell_contents}
    assert {f"tests/gpu/{path.name}" for path in (ROOT / "tests" / "gpu").glob("test_*.py")} <= named


@pytest.mark.slow
@pytest.mark.distributed
def test_the_whole_of_it_is_rehearsed_on_a_cpu(tmp_path):
    command = [ROOT / "benchmarks" / "gpu_first.sh", "--rehearse", "--json", tmp_path / "rehearsal.json"]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*map(str, command), "--seconds", "3000"], env=environment, capture_output=True, text=True, check=False
    )
    results = json.loads((tmp_path / "rehearsal.json").read_text())["results"]
    failed = {
        name: result["error"] for name, result in results.items() if result["status"] not in ("passed", "skipped")
    }
    assert not failed
    assert done.returncode == 0 and len(results) == sum(map(len, PARTS.values()))
    only_on_gpus = {
        "2 tests of activations",
        "2 tests of curves, fp32",
        "2 tests of curves, others",
        "2 tests of heads",
        "2 tests of tasks",
        "6 compile",
        "6 fp8",
    }
    skipped = {name for name, result in results.items() if result["status"] == "skipped"}
    assert skipped <= {*only_on_gpus, "7 against a peer"}
