"""The tables of docs/models.md, from a trial of every family."""

import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.zoo.families import CAUSAL, CLASSIFIERS, Family
from tests.zoo.trial import Outcome, attempt

MODES: dict[str, dict[str, Any] | None] = {"full": None, "LoRA": {"method": "lora"}}
HEAD = """# Models tried

Made by `python -m tests.zoo docs/models.md` with torch {torch}, transformers {transformers} and peft {peft}.

Each row is a tiny model of the family, made from transformers' own config class with weights drawn at random, and goes
through a run's own code, once with all weights trained and once with LoRA without `target_modules`:

- the gradient of one step with its batch of six texts of different lengths in one padded micro-batch, in micro-batches
  of two and of one: the number in the table is the largest relative distance, without dropout, in float64 (rounding:
  1e-15; about 1e-8 where a layer computes in float32 whatever the model's dtype) or, marked 32, in float32;
- a checkpoint after step 1, a model loaded anew that resumes from it: step 2 is the same bit for bit;
- `model/` read by plain transformers, and an adapter by PEFT too: the same logits.

"unused parts": some weights cannot change the loss (a vision tower where only text is read), and the run names and
freezes them. "refused": see the end.

What this does not show: that a family's published checkpoints and tokenizers have no trait that these do not have.

The loss is the task's own and nothing else. A mixture of experts' balancing loss (`router_aux_loss_coef`) depends on
how a batch is cut and is never added. Noise that a router adds while training (`router_jitter_noise` of Phi-3.5 MoE) is
drawn like dropout, keyed by the micro-batch, and is switched off here like dropout.
"""
REFUSED_HEAD = """
## Refused

Before the first step, with this message (what a config tells, before any weights load):
"""


KINDS = {
    "Causal language models": ("causal_lm", CAUSAL),
    "Text classifiers": ("text_classification", CLASSIFIERS),
}


def write_tables(path: Path) -> None:
    """Try everything, a process for each kind of model, and write the tables."""
    parts = [HEAD.format(**{name: version(name) for name in ("torch", "transformers", "peft")})]
    refused: list[str] = []
    with ProcessPoolExecutor(len(KINDS), mp_context=get_context("spawn")) as pool:
        for title, found in zip(KINDS, pool.map(_try_all, KINDS), strict=True):
            parts += [f"\n## {title}\n", *_table(KINDS[title][1], found)]
            for name, outcomes in found.items():
                messages: dict[str, list[str]] = {}
                for mode, outcome in outcomes.items():
                    messages.setdefault(outcome.refused, []).append(mode)
                refused += [f"- {name}, {' and '.join(modes)}: {text}" for text, modes in messages.items() if text]
    path.write_text("\n".join([*parts, REFUSED_HEAD, *refused]) + "\n", encoding="utf-8")


def _try_all(title: str) -> dict[str, dict[str, Outcome]]:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    task, families = KINDS[title]
    return {
        name: {mode: _tried(family, task, peft) for mode, peft in MODES.items()} for name, family in families.items()
    }


def _tried(family: Family, task: str, peft: dict[str, Any] | None) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        outcome = attempt(family, task, peft, Path(folder))
    if outcome.refused.startswith("train.micro_batch_size"):
        with tempfile.TemporaryDirectory() as folder:
            outcome.alone = not attempt(family, task, peft, Path(folder), train={"micro_batch_size": 1}).refused
    print(f"{task} {family.model_type} {'lora' if peft else 'full'}: {outcome.refused or outcome.gradient}", flush=True)
    return outcome


def _table(families: Mapping[str, Family], found: Mapping[str, Mapping[str, Outcome]]) -> Iterator[str]:
    columns = ["family", "model_type", *MODES]
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for name, outcomes in found.items():
        cells = [_cell(outcome) for outcome in outcomes.values()]
        yield f"| {name} | `{families[name].model_type}` | {' | '.join(cells)} |"
    passed = sum(not any(outcome.refused for outcome in outcomes.values()) for outcomes in found.values())
    yield f"\n{passed} of {len(found)} pass both ways."


def _cell(outcome: Outcome) -> str:
    if outcome.refused:
        return "refused; passes with `train.micro_batch_size: 1`" if outcome.alone else "refused"
    return (
        f"{outcome.gradient:.0e}"
        + (", 32" if outcome.bits == 32 else "")
        + (", unused parts" if outcome.remarks else "")
    )
