"""Measures what each key of the section `regularization` does to the test score of small data sets: a Markdown table.

    python benchmarks/regularization.py [--data DIR] [--sets sst2 trec] [--cures plain r_drop] [--seeds 0 1 2]

Every run is train.py's, with the same recipe but for the cure. A run that ends adds a line to RESULTS, so the command
goes on where it was cut off; `--table` prints what is there. DIR holds sst2/{train,dev}.jsonl, trec/{train,test}.jsonl
with the six coarse labels, and wnut17/{train,test}.conll; without it the sets come from the hub.
"""

import argparse
import ctypes
import hashlib
import importlib
import json
import math
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
WARM = "train datasets evaluate sklearn.metrics scipy.stats transformers.models.bert.modeling_bert".split() + [
    f"onecurve.{name}"
    for name in (
        "adapters data evaluation export.model_folder faults machine.distributed model.loading model.packing "
        "model.reach regularization.building resume step strategies.plain summary tracking"
    ).split()
]
"""What a run imports: each is forked from a process that has it, which saves seconds of each."""


@dataclass(frozen=True)
class Set:
    """A data set, cut so that a run takes about half a minute of one core."""

    title: str
    task: str
    train: str
    """Below DIR, and so is `test`."""
    test: str
    hub: tuple[str, str]
    columns: dict[str, str]
    """Of the hub's rows."""
    examples: int
    """Of the training split, drawn anew by each seed."""
    epochs: int
    lr: float
    metrics: tuple[str, ...]
    without: dict[str, str]
    """Cures that are left out, and why."""
    rare: bool = False
    """Whether the examples that are drawn may lack a label, so that a file's are listed; a hub set lists its own."""

    @property
    def steps(self) -> int:
        """Optimizer updates of a run."""
        return self.epochs * math.ceil(self.examples / BATCH)


BATCH = 32
_END_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of linux/prctl.h."""
SETS = {
    "sst2": Set(
        title="SST-2", task="text_classification", train="sst2/train.jsonl", test="sst2/dev.jsonl",
        hub=("SetFit/sst2:train", "SetFit/sst2:validation"), columns={}, examples=500, epochs=2, lr=2e-4,
        metrics=("accuracy",), without={"class_weights": "as many of each label"},
    ),
    "trec": Set(
        title="TREC", task="text_classification", train="trec/train.jsonl", test="trec/test.jsonl",
        hub=("CogComp/trec:train", "CogComp/trec:test"), columns={"label": "coarse_label"}, examples=800, epochs=3,
        lr=4e-4, metrics=("accuracy", "macro_f1"), without={}, rare=True,
    ),
    "wnut17": Set(
        title="WNUT-17", task="token_classification", train="wnut17/train.conll", test="wnut17/test.conll",
        hub=("leondz/wnut_17:train", "leondz/wnut_17:test"), columns={"tags": "ner_tags"}, examples=800, epochs=2,
        lr=4e-4, metrics=("f1",), rare=True,
        without=dict.fromkeys(("word_swap", "word_deletion"), "tags belong to words"),
    ),
}  # fmt: skip
CURES: dict[str, tuple[str, Callable[[int, int], dict[str, Any]]]] = {
    "plain": ("none", lambda steps, blocks: {}),
    "label_smoothing": ("Szegedy et al.: 0.1", lambda steps, blocks: {"label_smoothing": 0.1}),
    "focal": ("Lin et al.: 2", lambda steps, blocks: {"focal_gamma": 2}),
    "class_weights": ("scikit-learn: balanced", lambda steps, blocks: {"class_weights": "balanced"}),
    "r_drop": ("the paper's 1, halved as its loss is here", lambda steps, blocks: {"r_drop": 0.5}),
    "fgm": ("1, as mostly used", lambda steps, blocks: {"fgm": 1}),
    "fgm_0.1": ("a tenth of that", lambda steps, blocks: {"fgm": 0.1}),
    "neftune": ("the paper's smallest, 5", lambda steps, blocks: {"neftune_alpha": 5}),
    "word_swap": ("EDA: 0.1", lambda steps, blocks: {"word_swap": 0.1}),
    "word_deletion": ("EDA: 0.1", lambda steps, blocks: {"word_deletion": 0.1}),
    "dropout": ("0.2 in place of the model's 0.1", lambda steps, blocks: {"dropout": 0.2}),
    "layer_decay": ("ELECTRA's for its small model: 0.8", lambda steps, blocks: {"layer_decay": 0.8}),
    "freeze": ("the lower half, and the embeddings", lambda steps, blocks: {"freeze_blocks": blocks // 2}),
    "unfreeze": (
        "all is trained from half of the run on",
        lambda steps, blocks: {"unfreeze_every": max(1, steps // (2 * (blocks + 1)))},
    ),
    "ema": ("decay 0.95: about the last 20 steps", lambda steps, blocks: {"average": "ema", "average_decay": 0.95}),
    "swa": (
        "Izmailov et al.: the last quarter",
        lambda steps, blocks: {"average": "swa", "average_start": steps * 3 // 4},
    ),
    "last": (
        "Vaswani et al.: 5, a twentieth of the run apart",
        lambda steps, blocks: {"average": "last", "average_every": max(1, steps // 20)},
    ),
}
"""Name -> where its setting comes from, and the keys, given a run's steps and the model's blocks."""


def _labels(path: Path) -> list[str]:
    """Return the labels of a file of the training split, in JSON lines or CoNLL columns."""
    lines = path.read_text("utf-8").splitlines()
    found = (
        json.loads(line)["label"] if path.suffix == ".jsonl" else line.split()[-1] for line in lines if line.strip()
    )
    return sorted(set(found))


def recipe(name: str, cure: str, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe of one run; runs of one seed see the same examples in the same order."""
    one, local = SETS[name], asked.data is not None
    train, test = (str(asked.data / path) for path in (one.train, one.test)) if local else one.hub
    labels = {"labels": _labels(Path(train))} if local and one.rare else {}
    blocks = json.loads((asked.model / "config.json").read_text())["num_hidden_layers"]
    return {
        "task": {"name": one.task, **labels},
        "model": {"path": str(asked.model)},
        "data": {
            "train": train, "test": test, "columns": {} if local else one.columns,
            "max_samples": {"train": one.examples}, "max_length": 64, "on_long": "truncate",
            "cache_dir": str(asked.results.parent / "cache"),
        },
        "optim": {"lr": one.lr, "warmup_steps": one.steps // 10, "weight_decay": 0.01},
        "train": {
            "epochs": one.epochs, "global_batch_size": BATCH, "micro_batch_size": BATCH // 2, "group_by_length": True,
            "resume": "never",
        },
        "eval": {"micro_batch_size": BATCH},
        "checkpoint": {"every": None},
        "regularization": CURES[cure][1](one.steps, blocks),
        "seed": seed,
    }  # fmt: skip


def fork(argv: list[str], log: Path) -> tuple[int, float]:
    """Run train.py in a fork of this process; return its exit code and the seconds of processor time it took."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        from onecurve.run.lifecycle import execute, leave

        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
        for descriptor in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        leave(execute(importlib.import_module("train").main, argv))
    _, status, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def measure(name: str, cure: str, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Do one run; return its line of the results.

    Raises:
        SystemExit: The run failed; its output says why.
    """
    work = asked.results.parent
    folder, log, path = work / "run", work / "run.log", work / "run.yaml"
    shutil.rmtree(folder, ignore_errors=True)
    log.unlink(missing_ok=True)
    made = recipe(name, cure, seed, asked)
    path.write_text(json.dumps({"output_dir": str(folder), **made}))
    code, seconds = fork([str(path)], log)
    if code:
        sys.exit(f"{log.read_text()[-3000:]}\n{name} {cure} seed {seed}: exit code {code}")
    test = next(e for line in (folder / "metrics.jsonl").open() if (e := json.loads(line))["event"] == "test")
    scores = {metric: value for metric, value in test.items() if isinstance(value, float) and metric != "time"}
    return {
        "key": key(made, asked),
        "set": name,
        "cure": cure,
        "seed": seed,
        "cpu": round(seconds, 1),
        "scores": scores,
    }


def key(made: dict[str, Any], asked: argparse.Namespace) -> str:
    """Return what tells a run from one under other settings: two such do not share a table."""
    told = {**made, "model": asked.model.name, "data": {**made["data"], "cache_dir": None}}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def table(lines: list[dict[str, Any]], sets: list[str]) -> str:
    """Return the Markdown table of all results."""
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for line in lines:
        found.setdefault((line["set"], line["cure"]), {})[line["seed"]] = line["scores"]
    columns = [(name, metric) for name in sets for metric in SETS[name].metrics if (name, "plain") in found]
    if not columns:
        return "Nothing is measured yet without a cure."
    titles = [f"{SETS[name].title}, {metric}" for name, metric in columns]
    rows = ["| cure | setting | " + " | ".join(f"{title} | against plain" for title in titles) + " |"]
    rows.append("|---|---|" + "--:|--:|" * len(columns))
    for cure in CURES:
        cells = [cell for name, metric in columns for cell in _cells(found, name, cure, metric)]
        rows.append(f"| {cure} | {CURES[cure][0]} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cells(found: dict[Any, Any], name: str, cure: str, metric: str) -> list[str]:
    """Say a cure's mean and range over its seeds, and those of what each seed gained, in points."""
    if cure in SETS[name].without:
        return ["–", SETS[name].without[cure]]
    own = {seed: 100 * scores[metric] for seed, scores in found.get((name, cure), {}).items()}
    plain = {seed: 100 * scores[metric] for seed, scores in found[name, "plain"].items()}
    gains = [own[seed] - plain[seed] for seed in sorted(own.keys() & plain.keys())]
    if not gains:
        return ["not measured", ""]
    seeds = f", {len(own)} seeds" if len(own) < len(plain) else ""
    told = f"{statistics.mean(own.values()):.1f} ({min(own.values()):.1f} to {max(own.values()):.1f}{seeds})"
    if cure == "plain":
        return [told, ""]
    mark = " *" if differs(gains) else ""
    return [told, f"{statistics.mean(gains):+.1f} ({min(gains):+.1f} to {max(gains):+.1f}){mark}"]


def differs(gains: list[float]) -> bool:
    """Whether the mean of what each seed gained is not 0 by a paired t-test at 5 percent."""
    from scipy.stats import t

    if len(gains) < 2:
        return False
    error = statistics.stdev(gains) / math.sqrt(len(gains))
    return abs(statistics.mean(gains)) > error * float(t.ppf(0.975, len(gains) - 1))


def main(argv: list[str]) -> int:
    """Measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: from the hub")
    parser.add_argument("--model", type=Path, default=ROOT / "models/all-MiniLM-L6-v2", help="folder of the base model")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--cures", nargs="+", default=list(CURES), choices=CURES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=ROOT / "runs/regularization/results.jsonl")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    asked = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    asked.results.touch()
    known = {line["key"]: line for line in map(json.loads, asked.results.open())}
    runs = [
        (name, cure, seed)
        for name in asked.sets
        for cure in asked.cures
        for seed in asked.seeds
        if cure not in SETS[name].without
    ]
    keys = [key(recipe(*run, asked), asked) for run in runs]
    if not asked.table:
        for module in WARM:
            importlib.import_module(module)
        for number, (run, its_key) in enumerate(zip(runs, keys, strict=True), 1):
            if its_key not in known:
                known[its_key] = line = measure(*run, asked)
                with asked.results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{time.strftime('%H:%M:%S')} {number}/{len(runs)} {json.dumps(line)}", flush=True)
    print(table([known[its_key] for its_key in keys if its_key in known], asked.sets))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
