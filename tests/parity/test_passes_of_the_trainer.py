"""The plain Trainer that a run is compared with sees what train.py sees: draws of the pass that it is in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onecurve.config import DataSection, Recipe, TaskSection
from onecurve.data import load_data
from onecurve.data.collation import Collation, Wanted
from onecurve.errors import ConfigError
from onecurve.parity.hf_arguments import training_arguments
from onecurve.parity.hf_recording import Examples, Recorder, collator, recording
from onecurve.tasks import load_task
from tests.data.byte_level import write_jsonl
from tests.readings import ReadingOf

PASSES, ROWS, SIZE = 3, 6, 2


def test_examples_are_drawn_anew_in_each_pass(tmp_path: Path, tiny_masked_bert: Path) -> None:
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, TrainingArguments

    config, tokenizer = (kind.from_pretrained(tiny_masked_bert) for kind in (AutoConfig, AutoTokenizer))
    task, reading = load_task(TaskSection(name="masked_lm")), ReadingOf(lambda: tokenizer, 64, config)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"the quick brown fox {i} jumps"} for i in range(ROWS)])
    train = load_data(DataSection(train=rows, cache_dir=str(tmp_path / "cache")), task, reading, 0).train
    collation, recorder = Collation(train, task, reading), Recorder(tmp_path, steps=99)
    collate = collator(collation, 7, recorder)
    batches: list[dict[str, Any]] = []

    def kept(examples: list[tuple[int, Any]]) -> dict[str, Any]:
        batches.append({name: tensor.clone() for name, tensor in collate(examples).items()})
        return collate(examples)

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        num_train_epochs=PASSES,
        per_device_train_batch_size=SIZE,
        gradient_accumulation_steps=2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    model = AutoModelForMaskedLM.from_pretrained(tiny_masked_bert)
    trainer = recording(recorder)
    trainer(model, arguments, kept, Examples(train), callbacks=[recorder]).train()

    hidden = []
    for number, batch in enumerate(batches):
        epoch = number // (ROWS // SIZE)
        ids = batch["sample_ids"].numpy().astype(np.int64)
        ours = collation(Wanted(7, np.full_like(ids, epoch).tobytes(), ids.tobytes()))
        assert torch.equal(batch["input_ids"], ours["input_ids"]), epoch
        hidden.append({int(i): row.tolist() for i, row in zip(ids, ours["input_ids"], strict=True)})
    assert len(batches) == PASSES * ROWS // SIZE
    drawn = [hidden[start] | hidden[start + 1] | hidden[start + 2] for start in (0, 3, 6)]
    assert [len(of_pass) for of_pass in drawn] == [ROWS] * PASSES
    assert drawn[0] != drawn[1] != drawn[2], "every pass draws alike: nothing to mistake"


def test_only_cures_that_are_set_are_refused(tmp_path: Path) -> None:
    """Several keys of the section have a default that does nothing without another."""
    sections: dict[str, Any] = {
        "output_dir": str(tmp_path),
        "task": {"name": "causal_lm"},
        "model": {"path": "model"},
        "data": {"train": "rows.jsonl"},
        "train": {"max_steps": 4, "global_batch_size": 8, "micro_batch_size": 4},
    }
    words = training_arguments(Recipe(**sections), "no", 1, 4, tmp_path)
    assert words["max_steps"] == 4
    averaged = Recipe(**sections, regularization={"average": "ema"})
    with pytest.raises(ConfigError, match=r"regularization\.average: the Trainer has no such feature"):
        training_arguments(averaged, "no", 1, 4, tmp_path)
