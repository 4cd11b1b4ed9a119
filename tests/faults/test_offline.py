"""With HF_HUB_OFFLINE=1 a run asks nothing of any network: each look-up and connection it tries is recorded."""

import json
import shutil
import subprocess

import pytest

from tests.launching import ROOT, command, environment, write_recipe
from tests.tiny_models import build_tiny_bert, build_tiny_llama

RECORDER = """
import os, socket, sys

OURS = ("", "localhost", "127.0.0.1", "::1", socket.gethostname())
EVENTS = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")


def record(event, arguments):
    if event not in EVENTS:
        return
    address = arguments[1] if event in EVENTS[:2] else arguments[0]
    if isinstance(address, tuple):
        address = address[0]
    elif event in EVENTS[:2]:
        return  # a local socket's path
    address = address.decode() if isinstance(address, bytes) else address
    if address not in (None, *OURS) and not address.startswith("127."):
        with open(os.environ["RECORD"], "a") as file:
            file.write(f"{event} {address}\\n")
        raise OSError(f"the test allows no connection to {address}")


sys.addaudithook(record)
"""


def may_leave_the_network():
    return bool(shutil.which("unshare")) and subprocess.run(["unshare", "-n", "true"], check=False).returncode == 0


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline")
    rows = [{"text": f"headline {i} rises", "label": ("up", "down")[i % 2]} for i in range(20)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(task, model, **sections):
        return write_recipe(
            folder / f"{task}.yaml",
            output_dir="unused",
            task={"name": task},
            model={"path": str(model)},
            data={
                **dict.fromkeys(("train", "eval", "test"), str(folder / "data.jsonl")),
                "cache_dir": str(folder / "c"),
            },
            checkpoint={"every": 2},
            train={"max_steps": 3, "global_batch_size": 4, "micro_batch_size": 2},
            **sections,
        )

    return {
        "text_classification": write(
            "text_classification",
            build_tiny_bert(folder / "bert"),
            peft={"method": "lora", "target_modules": ["query"]},
        ),
        "causal_lm": write("causal_lm", build_tiny_llama(folder / "llama")),
    }


def attempts(folder, recipe, *overrides, how="python", offline="1"):
    """Launch where only the machine itself can be reached; return the exit code, what was tried, what was said."""
    (folder / "sitecustomize.py").write_text(RECORDER)
    record = folder / "record.txt"
    record.write_text("")
    settings = {"PYTHONPATH": str(folder), "RECORD": str(record), "HF_HUB_OFFLINE": offline}
    words = [*command(how), "train.py", str(recipe), "--output_dir", str(folder / "run"), *overrides]
    if may_leave_the_network():
        words = ["unshare", "-n", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh", *words]
    done = subprocess.run(
        words, cwd=ROOT, env=environment() | settings, capture_output=True, text=True, timeout=540, check=False
    )
    return done.returncode, record.read_text().splitlines(), done.stderr


@pytest.mark.parametrize(
    ("task", "how"),
    [
        ("causal_lm", "python"),
        pytest.param("text_classification", "python", marks=pytest.mark.slow),
        pytest.param("causal_lm", "ddp", marks=pytest.mark.slow),
    ],
)
def test_an_offline_run_asks_nothing_of_any_network(recipes, tmp_path, task, how):
    code, tried, said = attempts(tmp_path, recipes[task], how=how)
    assert code == 0, said
    assert tried == []
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["step"]) == ("done", 3)


def test_a_hub_name_without_a_copy_is_one_message_and_asks_nothing_either(recipes, tmp_path):
    code, tried, said = attempts(tmp_path, recipes["causal_lm"], "--model.path", "nosuch/model")
    assert (code, tried) == (2, [])
    assert len(said.strip().splitlines()) == 1, said


def test_the_recorder_sees_a_run_that_may_ask(recipes, tmp_path):
    code, tried, _ = attempts(tmp_path, recipes["causal_lm"], "--model.path", "nosuch/model", offline="0")
    assert code == 2
    assert any("huggingface.co" in line for line in tried)
