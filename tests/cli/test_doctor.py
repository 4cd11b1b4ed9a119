"""`onecurve doctor`: alone and on several ranks, on machines with planted faults."""

import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch

from onecurve.doctor import devices, speed
from onecurve.doctor.devices import own_accelerator_index
from onecurve.doctor.findings import Patient
from onecurve.doctor.speed import slow_ones
from onecurve.doctor.storage import check_storage
from onecurve.doctor.world import World
from onecurve.machine import accelerator
from onecurve.machine.accelerator import TorchDevice
from tests.launching import ROOT, environment, write_recipe

DOCTOR = [sys.executable, "-m", "onecurve", "doctor"]
SECONDS = 300


def may_unshare():
    if not shutil.which("unshare"):
        return False
    tried = ["unshare", "-m", "-u", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


needs_root = pytest.mark.skipif(not may_unshare(), reason="may not make namespaces and mounts")


@pytest.fixture
def recipe(tmp_path, tiny_bert):
    (tmp_path / "data.jsonl").write_text('{"text": "a", "label": "up"}\n{"text": "b", "label": "down"}\n')
    return write_recipe(
        tmp_path / "recipe.yaml",
        output_dir=str(tmp_path / "runs" / "one"),
        task={"name": "text_classification"},
        model={"path": str(tiny_bert)},
        data={"train": str(tmp_path / "data.jsonl")},
        checkpoint={"every": 5},
        train={"max_steps": 20},
    )


def start(words, cwd=ROOT, **variables):
    settings = environment() | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(words, cwd=cwd, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    stdout, stderr = process.communicate(timeout=SECONDS)
    assert "Traceback" not in stderr, stderr
    return process.returncode, stdout, stderr


def examine(folder, *words, before=(), **variables):
    """Run it to its end; return the exit code, its findings by name and what it printed."""
    path = folder / "report.json"
    command = [*before, *DOCTOR, *map(str, words), "--json", str(path)]
    code, stdout, stderr = finish(start(command, **variables))
    report = json.loads(path.read_text()) if path.exists() else None
    return code, by_name(report), stdout + stderr


def by_name(report):
    found = {}
    for finding in report["findings"] if report else ():
        found.setdefault(finding["name"], []).append(finding)
    return found


def levels(found, level):
    return {name for name, entries in found.items() if any(entry["level"] == level for entry in entries)}


def ranks(count, **variables):
    """The variables of each rank of one world, as a launcher would set them."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = str(server.getsockname()[1])
    both = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **variables}
    return [{"RANK": str(rank), **both} for rank in range(count)]


def test_a_healthy_machine_and_a_good_recipe_are_fine(tmp_path, recipe, tiny_bert):
    code, found, printed = examine(tmp_path, recipe)
    assert code == 0, printed
    assert levels(found, "failure") == set()
    assert {"torch", "cores", "gpu", "disk", "writing", "locks", "hub", "matrix product", "recipe"} <= found.keys()
    assert "0 failure(s)" in printed
    needs = found["needs"][0]["value"]
    from transformers import AutoModel

    parameters = sum(p.numel() for p in AutoModel.from_pretrained(tiny_bert).parameters())
    size = parameters * 4 / 1e9
    told = f"2 checkpoints of {3 * size:.3f} GB and a model of {size:.3f} GB, for {parameters:,} parameters"
    assert needs == told
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.glob(".onecurve-doctor-*"))


@pytest.mark.parametrize(
    ("override", "name", "said"),
    [
        (["--optim.lr", "fast"], "recipe", "optim.lr: must be a number; got 'fast'."),
        (["--data.train", "nowhere.jsonl"], "data.train", "nowhere.jsonl does not exist"),
        (["--model.path", "./no/model"], "model.path", "./no/model does not exist"),
        (["--checkpoint.every=1", "--checkpoint.keep=900000", "--train.max_steps=900000"], "needs", " in all, and "),
        (["--output_dir", "/proc/nothing"], "writing", "not in /proc: "),
    ],
)
def test_what_a_recipe_lacks_is_a_failure(tmp_path, recipe, override, name, said):
    code, found, printed = examine(tmp_path, recipe, *override)
    assert code == 1, printed
    assert name in levels(found, "failure")
    assert said in found[name][0]["value"]


def test_overrides_without_a_recipe_are_refused(tmp_path):
    code, _, printed = examine(tmp_path, "--optim.lr=1")
    assert code == 2
    assert "--optim.lr=1 overrides a recipe, but no recipe is given" in printed


@pytest.mark.distributed
def test_two_ranks_under_torchrun_and_one_whose_clock_and_packages_are_off(tmp_path, recipe):
    """Rank 1 finds another accelerate, and its clock an hour ahead."""
    site = tmp_path / "site"
    (site / "accelerate-0.1.dist-info").mkdir(parents=True)
    (site / "accelerate-0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: accelerate\nVersion: 0.1\n"
    )
    (site / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if os.environ.get('RANK') == '1':\n"
        "    now = time.time\n"
        "    time.time = lambda: now() + 3600\n"
        "else:\n"
        f"    sys.path.remove({str(site)!r})\n"
    )
    path = tmp_path / "report.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "onecurve", "doctor"]
    code, printed, errors = finish_launcher([*torchrun, str(recipe), "--json", str(path)], PYTHONPATH=str(site))
    assert code != 0, printed + errors
    report = json.loads(path.read_text())
    assert (report["exit_code"], report["world_size"], report["missing"]) == (1, 2, [])
    found = by_name(report)
    assert levels(found, "failure") == {"packages", "accelerate differs"}
    wrong = next(entry for entry in found["packages"] if entry["level"] == "failure")
    assert (wrong["ranks"], "accelerate is 0.1, not" in wrong["value"]) == ([1], True)
    clock = next(entry for entry in found["clock"] if entry["level"] == "warning")
    assert clock["ranks"] == [1]
    assert clock["value"].startswith(("3,599.", "3,600."))
    assert {"sum over the ranks", "presence"} <= found.keys()


def finish_launcher(words, **variables):
    process = start(words, **variables)
    stdout, stderr = process.communicate(timeout=SECONDS)
    return process.returncode, stdout, stderr


@pytest.mark.distributed
def test_two_good_ranks_are_fine_and_their_speed_is_told(tmp_path, recipe):
    first, second = ranks(2)
    other = start([*DOCTOR, str(recipe)], **second)
    code, found, printed = examine(tmp_path, recipe, **first)
    assert code == 0, printed
    assert finish(other)[:2] == (0, "")
    assert found["presence"][0]["value"] == "all 2 ranks on 1 machines"
    assert "gloo" in found["sum over the ranks"][0]["value"]


@pytest.mark.slow
@needs_root
@pytest.mark.distributed
def test_two_machines_that_cannot_reach_each_other_or_share_no_disk(tmp_path):
    """Two host names nobody knows, and a disk of its own under one of them."""
    shared = tmp_path / "shared"
    shared.mkdir()
    first, second = ranks(2)
    as_other = f"hostname onecurve-b && mount -t tmpfs -o size=2g tmpfs {shared} && cd {shared}"
    inside = ["unshare", "-u", "-m", "bash", "-c", f'{as_other} && exec "$@"', "bash"]
    other = start([*inside, *DOCTOR], **second)
    as_one = f"hostname onecurve-a && cd {shared}"
    code, found, printed = examine(
        tmp_path, before=["unshare", "-u", "bash", "-c", f'{as_one} && exec "$@"', "bash"], **first
    )
    assert code == 1, printed
    finish(other)
    assert levels(found, "failure") == {"names", "ports", "shared disk"}
    assert "onecurve-a, onecurve-b cannot be resolved" in found["names"][0]["value"]
    assert {(entry["ranks"][0], entry["value"].partition(":")[0]) for entry in found["ports"]} == {
        (0, "no connection to onecurve-b"),
        (1, "no connection to onecurve-a"),
    }
    assert {entry["value"].rpartition(": ")[2] for entry in found["shared disk"]} == {
        "what onecurve-a writes is not seen here",
        "what onecurve-b writes is not seen here",
    }


@needs_root
@pytest.mark.parametrize(("options", "failing"), [("ro,size=2g", "writing"), ("size=64m", "disk"), ("size=5g", None)])
def test_a_disk_that_is_read_only_or_small_is_told(tmp_path, options, failing):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = f"mount -t tmpfs -o {options} tmpfs {disk} && cd {disk}"
    code, found, printed = examine(tmp_path, before=["unshare", "-m", "bash", "-c", f'{mounting} && exec "$@"', "bash"])
    assert code == (1 if failing else 0), printed
    assert levels(found, "failure") == ({failing} if failing else set())
    assert failing or "disk" in levels(found, "warning")


@needs_root
def test_a_name_that_does_not_resolve_is_a_warning_alone(tmp_path):
    before = ["unshare", "-u", "bash", "-c", 'hostname onecurve-nowhere && exec "$@"', "bash"]
    code, found, printed = examine(tmp_path, before=before)
    assert code == 0, printed
    assert "names" in levels(found, "warning")
    assert "onecurve-nowhere cannot be resolved" in found["names"][0]["value"]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_never_comes_is_named(tmp_path):
    first, second, _ = ranks(3)
    other = start([*DOCTOR, "--timeout", "20"], **second)
    code, found, printed = examine(tmp_path, "--timeout", "20", **first)
    assert code == 1, printed
    assert finish(other)[0] in (0, 1)
    assert found["presence"][0]["value"] == "ranks 2 did not connect within 20 s"
    assert found["locks"][0]["ranks"] == [0, 1], "those who came are examined all the same"
    assert json.loads((tmp_path / "report.json").read_text())["missing"] == [2]


@pytest.mark.distributed
def test_a_first_rank_that_never_comes_is_named(tmp_path):
    _, second = ranks(2)
    code, _, printed = examine(tmp_path, "--timeout", "2", **second)
    assert code == 2
    (line,) = printed.strip().splitlines()
    assert f"rank 1 on {socket.gethostname()} got no answer within 2 s from 127.0.0.1" in line


@pytest.mark.parametrize(
    ("seconds", "named"),
    [([1, 1, 1.1, 4], "rank 3 on d (3.8 times)"), ([2, 1], "rank 0 on a (2.0 times)"), ([1, 1.2], "")],
)
def test_the_slow_one_is_named(seconds, named):
    world = World(0, dict(enumerate("abcd"[: len(seconds)])), asked=len(seconds))
    told = [finding.value for finding in slow_ones(world, "matrix product", seconds)]
    assert told == ([f"matrix product: {named}"] if named else [])


@pytest.fixture
def gpus(monkeypatch):
    """Four GPUs to look at, and what is done with them, in order; numbers lie on the CPU all the same."""
    done, randn, ones = [], torch.randn, torch.ones
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 4,
        "current_accelerator": lambda check_available: torch.device("cuda"),
        "set_device_index": lambda number: done.append(("set", number)),
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.accelerator, name, value)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=f"GPU-{number}"))
    monkeypatch.setattr(torch, "randn", lambda *size, device: done.append(("use", device)) or randn(*size))
    monkeypatch.setattr(torch, "ones", lambda size, device: done.append(("sum", device)) or ones(size))
    for name in ("_SIZE", "_NUMBERS", "_NUMBERS_ON_CPU"):
        monkeypatch.setattr(speed, name, 8)
    return done


@pytest.mark.parametrize(
    ("variables", "own"),
    [({"LOCAL_RANK": "3"}, 3), ({"LOCAL_RANK": "5"}, 1), ({"SLURM_LOCALID": "2"}, 2), ({}, 0)],
)
def test_a_rank_takes_its_own_accelerator_index_before_it_uses_any(gpus, monkeypatch, tmp_path, variables, own):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (finding,) = speed.check_speed(Patient(World(0, {0: "a"}), tmp_path, []))
    assert gpus == [("set", own), ("use", "cuda")]
    assert own_accelerator_index() == own
    assert "in float32 on cuda" in finding.value


@pytest.mark.parametrize(
    ("owned", "device"),
    [
        (["GPU-0", "GPU-1"], "cuda"),
        (["GPU-0", "GPU-0"], "cpu"),  # which NCCL refuses: duplicate GPU
        (["GPU-0", ""], "cpu"),
    ],
)
def test_ranks_add_up_over_nccl_only_where_each_has_a_gpu_to_itself(gpus, monkeypatch, tmp_path, owned, device):
    class Ranks(World):
        def gather(self, value):
            return owned if isinstance(value, str) else [value] * len(owned)

    backends = []
    monkeypatch.setattr(torch.distributed, "new_group", lambda backend, timeout: backends.append(backend))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values, group: None)
    told = [*speed.check_speed(Patient(Ranks(0, {0: "a", 1: "a"}, asked=2), tmp_path, []))]
    assert [step for step in gpus if step[0] == "sum"] == [("sum", device)]
    assert backends == ["nccl" if device == "cuda" else "gloo"]
    assert told[-1].name == "sum over the ranks"


@pytest.mark.parametrize(
    ("rank", "ranks", "looked_at"),
    [(0, 4, [0]), (3, 4, [3]), (0, 1, [0, 1, 2, 3]), (0, 2, [0, 2, 3]), (1, 2, [1])],
)
def test_each_gpu_is_looked_at_by_one_rank(gpus, monkeypatch, tmp_path, rank, ranks, looked_at):
    """Every look opens a context, which takes memory of the GPU."""

    class Looked(TorchDevice):
        def name(self):
            return "H100"

        def free(self):
            gpus.append(self.device.index)
            return 80e9

        total = free

    monkeypatch.setattr(accelerator, "TorchDevice", Looked)
    monkeypatch.setattr(accelerator, "_known", {})
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    world = World(rank, dict.fromkeys(range(ranks), "a"), asked=ranks)
    found = [finding.name for finding in devices._accelerators(world)]
    assert [name for name in found if name != "gpu driver"] == [f"gpu {number}" for number in looked_at]
    assert sorted(set(gpus)) == looked_at


def test_an_accelerator_of_another_kind_is_named(monkeypatch, late_device):
    monkeypatch.setattr(devices, "kind_of_accelerator", lambda: "xpu")
    monkeypatch.setattr(devices, "accelerator_of", lambda device: late_device)
    late_device.capacity = 64 * 10**9
    found = devices._look_at("xpu", 2)
    assert (found.name, found.value, found.level) == ("xpu 2", "late device, 64 of 64 GB free", "ok")
    late_device.taken = 32 * 10**9
    assert devices._look_at("xpu", 2).level == "warning"


@pytest.mark.parametrize("error", [errno.ENOLCK, None])
def test_a_disk_without_locks_is_told(tmp_path, monkeypatch, error):
    def flock(file, operation):
        if error:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    found = {finding.name: finding for finding in check_storage(Patient(World(0, {0: "a"}), tmp_path, []))}
    assert found["locks"].level == "failure"
    assert list(tmp_path.iterdir()) == []
