"""A sample of the zoo's adapters, read where onecurve is not: by transformers, PEFT and its AutoPeft classes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters.test_exported import ids, read_plainly
from tests.zoo.building import build
from tests.zoo.families import CAUSAL, CLASSIFIERS
from tests.zoo.trial import Trial, logits, write_trial

SAMPLE = {
    "Mixtral": ("causal_lm", CAUSAL["Mixtral"], {}),
    "Mamba": ("causal_lm", CAUSAL["Mamba"], {}),
    "DeepSeek V3": ("causal_lm", CAUSAL["DeepSeek V3"], {}),
    "new tokens": ("causal_lm", CAUSAL["Llama"], {"add_tokens": [f"<{number}>" for number in range(9)]}),
    "DistilBERT": ("text_classification", CLASSIFIERS["DistilBERT"], {}),
    "RoBERTa": ("text_classification", CLASSIFIERS["RoBERTa"], {}),
    "Gemma 3": ("text_classification", CLASSIFIERS["Gemma 3"], {}),
}


@pytest.mark.slow
def test_an_adapter_computes_elsewhere_what_was_trained(tmp_path: Path) -> None:
    for name, (task, family, model) in SAMPLE.items():
        trial = Trial(
            write_trial(tmp_path / name, build(family, tmp_path / name / "base"), task, {"method": "lora"}, model=model)
        )
        trial.run()
        inputs = {"input_ids": ids(), "attention_mask": torch.ones_like(ids())}
        torch.save((ids(), logits(trial.model, inputs)), trial.checked.directory.model / "logits.pt")
    found = read_plainly(tmp_path, "peft", "autopeft", "transformers")
    assert found.keys() == {f"{name}/run/model" for name in SAMPLE}
    wrong = [(name, reader, told) for name, read in found.items() for reader, told in read.items() if not close(told)]
    assert not wrong


def close(told: Any) -> bool:
    return isinstance(told, list) and told[0] < 1e-5
