"""Every family people fine-tune, full and LoRA: one curve, resumable, and read back by plain transformers and PEFT."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.zoo.families import CAUSAL, CLASSIFIERS
from tests.zoo.trial import attempt

KINDS = {"causal_lm": CAUSAL, "text_classification": CLASSIFIERS}
MODES: dict[str, dict[str, Any] | None] = {"full": None, "lora": {"method": "lora"}}
ALONE = {"CANINE", "ConvBERT", "FNet", "MobileBERT", "Nystromformer", "YOSO"}
"""Encoders whose result depends on padding: refused, but for micro-batches of one text."""
REFUSED = {
    **dict.fromkeys(ALONE, "train.micro_batch_size: .* depends on the padding after it"),
    "BigBird, sparse": "attention_type in its config.json to original_full",
    "XMOD": "Set default_language there, to one of en_XX, de_DE",
    "Mistral 3": "of type mistral3, for which transformers has no AutoModelForCausalLM",
    "I-BERT lora": "IBertForSequenceClassification has no linear layers that lora could adapt",
}
"""Family, or family and mode -> the reason."""


def cases() -> list[Any]:
    return [
        pytest.param(
            task,
            name,
            mode,
            marks=[] if mode in family.fast and (task == "causal_lm" or name not in CAUSAL) else [pytest.mark.slow],
            id=f"{name}-{task}-{mode}",
        )
        for task, families in KINDS.items()
        for name, family in families.items()
        for mode in MODES
    ]


@pytest.mark.parametrize(("task", "name", "mode"), cases())
def test_a_family_draws_one_curve_and_is_read_back_or_is_refused(
    tmp_path: Path, task: str, name: str, mode: str
) -> None:
    outcome = attempt(KINDS[task][name], task, MODES[mode], tmp_path)
    expected = REFUSED.get(name, REFUSED.get(f"{name} {mode}"))
    assert bool(outcome.refused) == bool(expected), outcome.refused
    assert re.search(expected or "", outcome.refused)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", sorted(ALONE))
def test_a_family_that_reads_padding_draws_one_curve_where_nothing_is_padded(
    tmp_path: Path, name: str, mode: str
) -> None:
    outcome = attempt(CLASSIFIERS[name], "text_classification", MODES[mode], tmp_path, train={"micro_batch_size": 1})
    assert not outcome.refused
