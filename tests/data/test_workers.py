"""Encoding side by side gives what encoding in one process gives, and a lost worker is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from onecurve.config import DataSection
from onecurve.data import encoder, workers
from onecurve.data.workers import in_order
from onecurve.errors import DataError, LaunchError
from onecurve.tasks.base import Example, Processing, Row, Survey
from onecurve.tasks.sft import Task as Sft
from tests.data.byte_level import byte_tokenizer, is_for_a_split, load, write_jsonl
from tests.launching import ROOT

NUM_ROWS = 100
TEMPLATE = (
    "{% for message in messages %}{% if message.content == 'no' %}{{ raise_exception('no!') }}{% endif %}"
    "{{ message.content }}{% endfor %}"
)


class Witnessed(Sft):
    """Writes down which process encodes which row; a prompt may have it killed."""

    def __init__(self, log: Path) -> None:
        super().__init__(Sft.Settings())
        self.log = log

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        if row["prompt"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if is_for_a_split():
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()}\n")
        return super().encode(row, survey, reading, truncate)

    def processes(self) -> set[int]:
        return set(map(int, self.log.read_text(encoding="utf-8").split()))


def rows(**others: dict[str, str]) -> list[dict[str, str]]:
    made = [{"prompt": f"row {number} ", "response": "yes " * (number % 9)} for number in range(NUM_ROWS)]
    for place, row in others.items():
        made[int(place.removeprefix("row_"))] = row
    return [row if row["response"] else {**row, "response": "y"} for row in made]


@pytest.fixture
def encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Encode rows in parts of 7 on so many cores; return the data, and the processes that encoded."""
    monkeypatch.setattr(encoder, "_PART_ROWS", 7)

    def encode(
        num_cores: int, written: list[Any], max_length: int = 100, tokenizer: Any = None, **settings: Any
    ) -> Any:
        monkeypatch.setattr(workers, "num_cores", lambda: num_cores)
        path = write_jsonl(tmp_path / "train.jsonl", written)
        section = DataSection(train=path, cache_dir=str(tmp_path / f"cache-{num_cores}"), **settings)
        task = Witnessed(tmp_path / f"log-{num_cores}")
        return load(section, task, byte_tokenizer(chat_template=TEMPLATE), max_length), task.processes()

    return encode


def test_any_number_of_processes_gives_the_same_bytes_and_counts(encode: Any) -> None:
    written = rows(row_3={"prompt": "no", "response": "y"}, row_50={"prompt": "no", "response": "y"})
    written += [{"prompt": "p" * 40, "response": "all of it cut off"}]
    settings = {"on_bad_row": "skip", "on_long": "truncate", "max_length": 35}
    alone, own = encode(1, written, **settings)
    together, forks = encode(3, written, **settings)
    assert own == {os.getpid()}
    assert len(forks) > 1 and os.getpid() not in forks
    assert together.train.report == alone.train.report
    assert alone.train.report.skipped == 2 and alone.train.report.empty == 1 and alone.train.report.truncated > 1
    folders = [data.train.examples.folder for data in (alone, together)]
    files = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders]
    told = [json.loads(content.pop("info.json")) for content in files]
    assert len(files[0]) > 0
    assert files[0] == files[1]
    assert [told[0][key] for key in ("counts", "files")] == [told[1][key] for key in ("counts", "files")]
    assert len(together.train) == NUM_ROWS - 2


@pytest.mark.parametrize("num_cores", [1, 3])
@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"row_60": {"prompt": "no", "response": "y"}}, r"train\.jsonl, line 61: .*no!"),
        (
            {"row_60": {"prompt": "p" * 99, "response": "long"}, "row_90": {"prompt": "p" * 99, "response": "long"}},
            r"train\.jsonl, line 61: has 104 tokens, .*; so have 2 of the first 100 rows",
        ),
        (  # of two mistakes the first is told, whichever process is done first
            {"row_59": {"prompt": "no", "response": "y"}, "row_61": {"prompt": "p" * 99, "response": "long"}},
            r"train\.jsonl, line 60: .*no!",
        ),
    ],
)
def test_mistakes_name_file_and_row(encode: Any, num_cores: int, others: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode(num_cores, rows(**others))


def test_a_worker_that_is_killed_is_told_and_leaves_nothing(encode: Any, tmp_path: Path) -> None:
    before = psutil.Process().children()
    with pytest.raises(LaunchError, match=r"one of 3 processes that encode the data was killed.*more memory"):
        encode(3, rows(row_40={"prompt": "kill", "response": "y"}))
    left = [path.name for path in (tmp_path / "cache-3").iterdir() if path.is_dir()]
    assert [name for name in left if not name.startswith("rows-")] == []
    assert [child for child in psutil.Process().children() if child not in before] == []
    assert len(encode(3, rows())[0].train) == NUM_ROWS


def test_one_part_is_encoded_without_another_process(encode: Any) -> None:
    assert encode(3, rows()[:7])[1] == {os.getpid()}


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Run a script that calls `in_order` on two cores."""
    script = "from onecurve.data import workers\nworkers.num_cores = lambda: 2\n" + script
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TOKENIZERS_PARALLELISM": "true"}
    words = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


def test_forks_do_not_wait_for_the_tokenizers_threads(tiny_llama: Path) -> None:
    script = """
import sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.encode_batch(["some text"] * 100)  # on threads of its own, which a fork does not have
print(sum(workers.in_order(lambda _: len(tokenizer.encode_batch(["some text"] * 100)), range(9))))
"""
    run = start(script, str(tiny_llama / "tokenizer.json"))
    try:
        assert run.communicate(timeout=300)[0] == "900\n"
    finally:
        run.kill()


def test_workers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    script = """
import os, sys, time
from pathlib import Path
def work(part):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(3600)
list(workers.in_order(work, range(9)))
"""
    run = start(script, str(tmp_path))
    while len(list(tmp_path.iterdir())) < 2:
        assert run.poll() is None
        time.sleep(0.02)
    forks = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]
    run.kill()
    assert not psutil.wait_procs(forks, timeout=300)[1]


def test_what_work_raises_is_raised_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "num_cores", lambda: 2)

    def work(number: int) -> int:
        if number >= 5:
            raise DataError(f"{number}", where="here", fix="Mend it.")
        return number * number

    got = []
    with pytest.raises(DataError) as error:
        for result in in_order(work, range(9)):
            got.append(result)
    assert got == [0, 1, 4, 9, 16]
    assert str(error.value) == "here: 5 Mend it."
