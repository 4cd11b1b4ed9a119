import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from onecurve.machine import cores as host

ROOT = Path(__file__).parents[2]
REPORT = "from onecurve.machine.cores import settle; settle(); import torch; print('threads', torch.get_num_threads())"


def threads_of(*command: str, **environment: str) -> list[int]:
    """The threads of each rank that a command starts, OMP_NUM_THREADS set only where it is given."""
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, *command], env=kept | environment, capture_output=True, text=True, check=True, timeout=300
    )
    return [int(count) for count in re.findall(r"threads (\d+)", done.stdout)]  # two ranks may share a line


def test_one_rank_takes_every_core() -> None:
    assert threads_of("-c", REPORT) == [host.num_cores()]


def test_what_the_user_says_holds() -> None:
    assert threads_of("-c", REPORT, OMP_NUM_THREADS="1") == [1]


def test_ranks_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(host, "keep_memory", lambda: True)
    monkeypatch.setattr(host, "num_cores", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for ranks in ("1", "4", "16"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        host.settle()
    assert told == [9, 2, 1]


@pytest.mark.slow
def test_the_one_thread_that_a_launcher_chose_is_not_taken_for_the_users(tmp_path: Path) -> None:
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    launch = ("-m", "torch.distributed.run", "--nproc_per_node", "2", str(script))
    assert threads_of(*launch) == [max(1, host.num_cores() // 2)] * 2
    single = ("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "accelerate_configs" / "single.yaml"))
    assert threads_of(*single, str(script)) == [host.num_cores()]
    assert threads_of(*single, str(script), OMP_NUM_THREADS="1") == [1]


def test_a_container_or_affinity_limits_the_cores() -> None:
    assert 1 <= host.num_cores() <= (psutil.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " + REPORT
        assert threads_of("-c", one) == [1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands memory back")
def test_memory_that_is_kept_is_not_cleared_by_the_kernel_again() -> None:
    code = (
        "import resource, sys, torch\n"
        "from onecurve.machine import cores as host\n"
        "assert sys.argv[1] == 'plain' or host.keep_memory()\n"
        "for i in range(28):\n"  # the heap grows in the first ones
        "    if i == 8: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(10_000_000)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    plain, kept = (
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("plain", "kept")
    )
    assert kept * 10 < plain


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands memory back")
def test_memory_that_is_kept_is_handed_back_when_it_is_asked_for() -> None:
    code = (
        "import psutil, torch\n"
        "from onecurve.machine import cores as host\n"
        "resident = psutil.Process().memory_info\n"
        "host.keep_memory()\n"
        "torch.ones(100_000_000)\n"
        "kept = resident().rss\n"
        "host.return_memory()\n"
        "print((kept - resident().rss) // 10**6)"
    )
    returned = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(returned) >= 390


@pytest.mark.parametrize("told", [{}, {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, {"PYTORCH_CUDA_ALLOC_CONF": ""}])
def test_cudas_segments_grow_unless_the_user_told_the_allocator_anything(monkeypatch, told) -> None:
    environment = {"PATH": "/bin", **told}
    monkeypatch.setattr(os, "environ", environment)
    host.let_segments_grow()
    added = {} if told else {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert environment == {"PATH": "/bin", **told, **added}
