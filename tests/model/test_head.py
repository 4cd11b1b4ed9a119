"""A trained head keeps each label's row, whatever order the labels have; transformers itself is the oracle."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    LlamaConfig,
    RobertaConfig,
)

from onecurve.config import ModelSection, Recipe, TaskSection
from onecurve.content.labels import head_rows, model_labels
from onecurve.model.head import label_axes
from onecurve.model.loading import load_model
from onecurve.model.reading import Reading
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey
from tests.data.byte_level import write_jsonl
from tests.launching import launch, write_recipe
from tests.tiny_models import build_tiny_bert

MNLI = {0: "contradiction", 1: "neutral", 2: "entailment"}
NAMES = list(MNLI.values())
IDS = torch.tensor([[5, 6, 7, 8]])
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
KINDS = {"bert": BertConfig, "roberta": RobertaConfig, "llama": LlamaConfig}


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose rows differ, with MNLI's names in the order of roberta-large-mnli."""
    return write(tmp_path_factory.mktemp("models") / request.param, request.param, id2label=MNLI)


def write(folder: Path, kind: str = "bert", **config: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(KINDS[kind](**SIZES, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder


def load(folder: Path, survey: Survey, **sections: Any) -> Any:
    recipe = Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": "text_classification"},
            "model": {"path": str(folder)},
            "data": {"train": "unused"},
            "train": {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2},
            **sections,
        }
    )
    task = load_task(TaskSection(name="text_classification"))
    return load_model(recipe, task, AutoConfig.from_pretrained(folder), survey, "no").eval()


def said(model: Any) -> dict[str, float]:
    with torch.no_grad():
        logits = model(input_ids=IDS).logits[0].tolist()
    return {model.config.id2label[index]: value for index, value in enumerate(logits)}


def original(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


@pytest.mark.parametrize("peft", [None, {"method": "lora"}])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_each_label_keeps_its_row(trained: Path, order: list[int], peft: Any) -> None:
    survey = Survey([NAMES[index] for index in order], "recipe")
    model = load(trained, survey, peft=peft)
    assert [model.config.id2label[index] for index in range(3)] == survey.labels
    assert said(model) == pytest.approx(said(original(trained)))
    assert model.head_remark.startswith("the checkpoint's, each label by its name")
    assert ("reordered" in model.head_remark) == (order != [0, 1, 2])


def test_case_does_not_make_another_label(trained: Path) -> None:
    model = load(trained, Survey(["ENTAILMENT", "Neutral", "contradiction"]))
    assert {name.lower(): value for name, value in said(model).items()} == pytest.approx(said(original(trained)))


@pytest.mark.parametrize("labels", [["no", "perhaps", "yes"], ["contradiction", "neutral", "neutrl"]])
def test_a_head_for_other_labels_is_drawn_anew_and_said(trained: Path, labels: list[str]) -> None:
    model, before = load(trained, Survey(labels)), original(trained).state_dict()
    drawn = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert drawn == set(label_axes(AutoModelForSequenceClassification, model.config)), "the head's rows, and only they"
    assert model.head_remark == "drawn anew: the checkpoint's is for contradiction, neutral, entailment"
    again = load(trained, Survey(labels)).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_a_new_head_is_trained_beside_an_adapter(trained: Path) -> None:
    model = load(trained, Survey(["no", "perhaps", "yes"]), peft={"method": "lora"})
    heads = [name for name, p in model.named_parameters() if p.requires_grad and "lora" not in name]
    assert heads, "nothing but the adapter is trained"


def test_some_of_the_checkpoints_labels_say_how_to_keep_it(trained: Path) -> None:
    model = load(trained, Survey(["contradiction", "entailment"]))
    assert model.head_remark.endswith("; task.labels: [contradiction, neutral, entailment] keeps it")
    assert list(said(model)) == ["contradiction", "entailment"]


def test_rows_without_names_are_kept_only_where_something_names_them(tmp_path: Path) -> None:
    folder = write(tmp_path, num_labels=3)
    before = list(said(original(folder)).values())
    for kept in (Survey(["0", "1", "2"]), Survey(["LABEL_0", "LABEL_1", "LABEL_2"]), Survey(["c", "a", "b"], "recipe")):
        assert list(said(load(folder, kept)).values()) == pytest.approx(before)
    assert list(said(load(folder, Survey(["2", "0", "1"], "recipe"))).values()) == pytest.approx(
        [before[2], before[0], before[1]]
    )
    for unknown in (Survey(["a", "b", "c"]), Survey(["a", "b", "c"], "dataset"), Survey(["1", "2", "3"])):
        model = load(folder, unknown)
        assert list(said(model).values()) != pytest.approx(before)
        assert model.head_remark.startswith("drawn anew: the checkpoint's has rows without names; task.labels in the")


def test_nothing_is_said_of_a_head_that_the_checkpoint_has_not(tiny_bert: Path, tiny_llama: Path) -> None:
    for folder in (tiny_bert, tiny_llama):
        for survey in (Survey(["a", "b"]), Survey(["0", "1"]), Survey(["a", "b", "c"]), Survey(["b", "a"], "recipe")):
            assert not getattr(load(folder, survey), "head_remark", "")


def test_the_labels_of_a_config_are_by_id() -> None:
    assert model_labels(BertConfig(id2label={"1": "b", "0": "a", "10": "k"})) == []
    assert model_labels(BertConfig(id2label={str(i): f"{i}" for i in (2, 0, 1)})) == ["0", "1", "2"]
    assert model_labels(BertConfig()) == ["LABEL_0", "LABEL_1"]
    assert model_labels(object()) == []


def test_weights_that_are_drawn_give_labels_no_order(tmp_path: Path) -> None:
    folder = build_tiny_bert(tmp_path, id2label=MNLI)
    assert Reading(ModelSection(path=str(folder)), None, lambda: AutoTokenizer).labels == NAMES
    assert Reading(ModelSection(path=str(folder), init="random"), None, lambda: AutoTokenizer).labels == []


def test_what_nothing_names_has_no_row() -> None:
    assert head_rows(["a", "b"], [], in_given_order=True) is None
    assert head_rows(["a", "A"], ["A", "a"], in_given_order=False) == [1, 0]
    assert head_rows(["a", "A"], ["a", "b"], in_given_order=True) is None
    assert head_rows(["x", "y"], ["LABEL_0", "LABEL_1", "LABEL_2"], in_given_order=True) is None


def test_the_rows_of_a_head_are_found_whatever_it_is_called(trained: Path) -> None:
    config = AutoConfig.from_pretrained(trained)
    names = {"bert": {"classifier.weight", "classifier.bias"}, "llama": {"score.weight"}}
    names["roberta"] = {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    before = copy.deepcopy(config.to_dict())
    assert label_axes(AutoModelForSequenceClassification, config) == dict.fromkeys(names[config.model_type], 0)
    assert config.to_dict() == before


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("how", ["python", "zero3"])
def test_a_run_keeps_the_rows_under_every_strategy(tmp_path: Path, how: str) -> None:
    folder = build_tiny_bert(tmp_path / "model")
    config = AutoConfig.from_pretrained(folder, id2label=MNLI, label2id={name: row for row, name in MNLI.items()})
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    rows = [{"text": f"text {index}", "label": NAMES[index % 3]} for index in range(8)]
    for labels, words in ((None, "in the model's order: contradiction"), (["neutral", *NAMES[::2]], "rows reordered")):
        recipe = write_recipe(
            tmp_path / "recipe.yaml",
            output_dir=str(tmp_path / "run"),
            task={"name": "text_classification", **({"labels": labels} if labels else {})},
            model={"path": str(folder)},
            data={"train": write_jsonl(tmp_path / "train.jsonl", rows), "cache_dir": str(tmp_path / "cache")},
            optim={"lr": 1e-9},
            train={"max_steps": 1, "global_batch_size": 4, "micro_batch_size": 2, "resume": "never"},
        )
        finished = launch(recipe, tmp_path / "run", how)
        assert finished.exit_code == 0, finished.stderr
        assert words in finished.stdout
        exported = original(tmp_path / "run" / "model")
        assert list(exported.config.id2label.values()) == (labels or NAMES)
        assert said(exported) == pytest.approx(said(original(folder)), abs=1e-5)
