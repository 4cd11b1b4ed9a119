import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from onecurve.config import TaskSection
from onecurve.content.survey import Survey
from onecurve.errors import ConfigError
from onecurve.losses.distillation import divergence_sum, likeliest
from onecurve.tasks import load_task
from onecurve.tasks.base import Annotates, Borrows, Classifies, Generates, Writes
from tests.readings import reading
from tests.tasks.contract import CHECKS, Case, check_another_cut_has_the_same_gradient, prepare
from tests.tiny_models import build_tiny_bert, build_tiny_llama

TEXTS = [
    {"text": "profit rises", "label": "business"},
    {"text": "the striker scored twice before half time", "label": "sport"},
    {"text": "rain", "label": "weather"},
]
ANSWERS = [
    {"prompt": "what is it?", "response": "a dog, as far as I can tell"},
    {"prompt": "and that?", "response": "nothing"},
    {"prompt": "why?", "response": "there is no answer to the question"},
]


def _divergence(student: Tensor, teacher: Tensor, kind: str, beta: float) -> Tensor:
    """PyTorch's own, of log-probabilities."""
    if kind == "forward_kl":
        return functional.kl_div(student, teacher, reduction="sum", log_target=True)
    if kind == "reverse_kl":
        return functional.kl_div(teacher, student, reduction="sum", log_target=True)
    mixture = torch.log(beta * teacher.exp() + (1 - beta) * student.exp())
    apart = [functional.kl_div(mixture, one, reduction="sum", log_target=True) for one in (teacher, student)]
    return beta * apart[0] + (1 - beta) * apart[1]


def oracle(
    kind: str = "forward_kl", temperature: float = 1.0, beta: float = 0.5, weight: float = 0.5, top_k: int | None = None
) -> Any:
    """From whole logits of both models; what is not among the teacher's likeliest is added up."""

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if not name.startswith("teacher_")}
        teacher = copy.deepcopy(model)
        for parameter in teacher.parameters():
            parameter.data.mul_(0.9)
        labels, said = batch["labels"], [one(**inputs) for one in (model, teacher)]
        logits = [one.logits.double() for one in said]
        if labels.dim() == 2:
            there = labels[:, 1:] != -100
            logits = [one[:, :-1][there] for one in logits]
        student, known = ((one / temperature).softmax(-1) for one in logits)
        if top_k:
            best = known.argsort(-1, descending=True)
            student, known = (
                torch.cat([sorted_[:, :top_k], sorted_[:, top_k:].sum(1, keepdim=True)], 1)
                for sorted_ in (one.gather(1, best) for one in (student, known))
            )
        apart = _divergence(student.log(), known.log(), kind, beta) / len(student)
        return (1 - weight) * said[0].loss + weight * temperature**2 * apart

    return loss


NOT_FIXED = float("nan")  # at logits of zero the divergence is what the teacher makes of it
LABELS = Case(
    TEXTS,
    {"student_task": "text_classification", "teacher": "t", "temperature": 0.5, "weight": 0.7},
    model="tiny_bert",
    nats_per_item=NOT_FIXED,
    oracle=oracle(temperature=0.5, weight=0.7),
    task="distillation",
)
CASES = {
    "distillation": Case(
        ANSWERS,
        {"student_task": "sft", "teacher": "t", "top_k": 5, "divergence": "jsd", "beta": 0.3},
        nats_per_item=NOT_FIXED,
        oracle=oracle("jsd", beta=0.3, top_k=5),
    ),
}


@pytest.fixture(scope="module")
def labels(tiny_bert: Any) -> Any:
    return prepare(LABELS, tiny_bert)


@pytest.mark.parametrize("check", CHECKS)
def test_the_contract_holds_for_labels_too(labels: Any, check: Any) -> None:
    check(labels)


def _loaded(**settings: Any) -> Any:
    return load_task(TaskSection(name="distillation", **settings))


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_with_all_classes_the_divergence_is_that_of_whole_distributions(kind: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(6, 11, generator=generator) * 3 for _ in range(2))
    student.requires_grad_()
    ids, said = likeliest(teacher, 11, 2.0)
    ours = divergence_sum(student, ids, said, 2.0, kind, 0.3)
    theirs = 4 * _divergence((student / 2).log_softmax(1), (teacher / 2).log_softmax(1), kind, 0.3)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = [torch.autograd.grad(one, student, retain_graph=True)[0] for one in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-5) and bool(gradients[0].any())


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_more_classes_come_closer_to_the_whole_and_a_sure_teacher_costs_no_digits(kind: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn(4, 50, generator=generator) for _ in range(2))
    found = [
        divergence_sum(student, *likeliest(teacher, k, 1.0), 1.0, kind, 0.5).item() for k in (1, 5, 20, 40, 49, 50)
    ]
    assert found[:4] == sorted(found[:4]) and 0 < found[0] and found[3] < found[-1]
    assert found[-2] == pytest.approx(found[-1], rel=1e-5)  # the others are one class
    sure = torch.zeros(1, 50).index_fill(1, torch.tensor([3]), 60.0).requires_grad_()
    apart = divergence_sum(sure, *likeliest(sure.detach(), 2, 1.0), 1.0, kind, 0.5)
    (gradient,) = torch.autograd.grad(apart, sure)
    assert abs(apart.item()) < 1e-6 and float(gradient.abs().max()) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "beta"), [("forward_kl", 0.0), ("jsd", 0.3), ("reverse_kl", 1.0)])
def test_the_divergence_is_what_trl_computes(kind: Any, beta: float) -> None:
    trainer = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    student, teacher = torch.randn(2, 4, 9), torch.randn(2, 4, 9)
    labels = torch.tensor([[1, 2, -100, 4], [-100, -100, 3, 1]])
    theirs = trainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=1.5, reduction="sum")
    there = labels != -100
    ids, said = likeliest(teacher[there], 9, 1.5)
    ours = divergence_sum(student[there], ids, said, 1.5, kind, beta)
    assert ours.item() == pytest.approx(1.5**2 * theirs.item(), rel=1e-5)


def test_it_can_do_what_its_student_s_task_can_and_is_saved_as_one() -> None:
    labels, answers = (_loaded(student_task=name, teacher="t") for name in ("text_classification", "sft"))
    assert isinstance(labels, Annotates) and isinstance(labels, Borrows) and not isinstance(labels, Generates)
    assert isinstance(answers, Writes)
    assert isinstance(answers, Classifies) and answers.classes is None  # no criterion stands in for the teacher
    name, settings = _loaded(student_task="sft", teacher="t", learn="last", weight=0.9).saved_as()
    assert (name, settings["learn"]) == ("sft", "last")
    assert not {"teacher", "weight"} & settings.keys()
    assert load_task(TaskSection(name=name, **settings))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"student_task": "text_clasification"}, "text_classification"),
        ({"student_task": "image_classification"}, "made anew each time"),
        ({"student_task": "dpo"}, "neither labels nor tokens"),
        ({"student_task": "text_embedding"}, "neither labels nor tokens"),
        ({"student_task": "distillation"}, "neither labels nor tokens"),
        ({"student_task": "text_classification", "problem_type": "regression"}, "one of several labels"),
        ({"student_task": "text_classification", "beta": 0.2}, "beta has no effect"),
        ({"student_task": "text_classification", "wieght": 0.2}, "weight"),
        ({"student_task": "sft", "lern": "last"}, "learn"),
        ({"student_task": "sft", "weight": 0}, "weight"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        _loaded(teacher="t", **settings)


def test_a_teacher_is_looked_at_before_any_weights(tmp_path: Path, tiny_bert: Any, tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    own = reading(AutoTokenizer.from_pretrained(tiny_bert))
    survey = Survey(["no", "yes"])

    def why(path: Path, read: Any = own, **settings: Any) -> str:
        task = _loaded(student_task="text_classification", teacher=str(path), **settings)
        with pytest.raises(ConfigError) as refused:
            task.check_other_model(read, survey)
        assert refused.value.where.startswith("task.")
        return f"{refused.value.what} {refused.value.fix}"

    def labelled(*names: str) -> Path:
        folder = tmp_path / "-".join(names)
        build_tiny_bert(folder, weights=False, **({"id2label": dict(enumerate(names))}))
        return folder

    assert "no such folder" in why(tmp_path / "nowhere")
    assert "no such folder: 'runs/teacher/model'" in why(Path("runs/teacher/model"))
    assert "There is no folder of this name" in why(Path("teacher"))
    assert "has no effect" in why(tmp_path, teacher_revision="v1")
    (tmp_path / "empty").mkdir()
    assert "config.json" in why(tmp_path / "empty")
    build_tiny_bert(tmp_path / "run" / "model", weights=False)
    assert "is the directory of a run" in why(tmp_path / "run")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "is an adapter" in why(tmp_path / "adapter")
    assert "does not name its 2 labels" in why(labelled("LABEL_0", "LABEL_1"))
    assert "another order" in why(labelled("yes", "no"))
    assert "task.labels: [yes, no]" in why(labelled("yes", "no"))
    assert "predicts ['a', 'b', 'c']" in why(labelled("a", "b", "c"))
    marks = tmp_path / "marks"
    build_tiny_bert(marks, weights=False, id2label={0: "no", 1: "yes"}, problem_type="multi_label_classification")
    assert "was trained for multi_label_classification" in why(marks)
    assert "there are 2" in why(labelled("no", "yes"), top_k=3)
    _loaded(student_task="text_classification", teacher=str(labelled("no", "yes"))).check_other_model(own, survey)
    told = why(labelled("no", "yes"), reading(tokenizer))
    assert "another vocabulary" in told and "here and" in told


def test_tokens_are_told_apart_by_their_ids_not_their_number(tmp_path: Path) -> None:
    folder = build_tiny_llama(tmp_path / "llama", weights=False)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = _loaded(student_task="sft", teacher=str(folder))
    task.check_other_model(reading(tokenizer), Survey())
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="another vocabulary"):
        task.check_other_model(reading(tokenizer), Survey())


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("normalizer", {"type": "Lowercase"}, "The quick"),
        ("normalizer", {"type": "NFKC"}, "ve cafe"),
        ("normalizer", {"type": "Strip", "strip_left": True, "strip_right": True}, "two  spaces"),
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": False},
            "The quick",
        ),
        ("post_processor", {"type": "TemplateProcessing"}, "The quick"),
        ("added_tokens", {"lstrip": True}, "a <"),
        ("normalizer", {"type": "Replace", "pattern": {"String": "qx"}, "content": "q"}, "in a row: qx"),
    ],
)
def test_a_teacher_whose_texts_are_cut_otherwise_is_refused(
    part: str, value: dict[str, Any], said: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = build_tiny_llama(tmp_path / "llama", weights=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = _loaded(student_task="sft", teacher=str(folder))
    rows = [{"messages": [{"role": "user", "content": "in a row: qx"}], "weight": 1.0, "audio": b"x"}]
    task.check_other_model(reading(tokenizer), Survey(), rows)
    content = json.loads((folder / "tokenizer.json").read_text())
    if part == "added_tokens":
        content[part][0] |= value
    elif part == "pre_tokenizer":
        content[part] = {"type": "Sequence", "pretokenizers": [value, content[part]]}
    elif part == "post_processor":
        first = content["added_tokens"][0]
        pieces = [{"SpecialToken": {"id": first["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        special = {"id": first["content"], "ids": [first["id"]], "tokens": [first["content"]]}
        content[part] = value | {"single": pieces, "pair": pieces, "special_tokens": {first["content"]: special}}
    else:
        content[part] = value
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="cut into tokens otherwise") as refused:
        task.check_other_model(reading(tokenizer), Survey(), rows)
    assert said in refused.value.what and "here and" in refused.value.what, refused.value.what
    assert refused.value.where == "task.teacher"


def test_of_more_labels_than_are_kept_each_word_has_its_own(tiny_bert: Any) -> None:
    rows = [
        {"tokens": ["Ada", "met", "Alan"], "tags": ["B-PER", "O", "B-PER"]},
        {"tokens": ["in", "Oslo"], "tags": ["O", "B-LOC"]},
    ]
    settings = {"student_task": "token_classification", "teacher": "t", "top_k": 2}
    case = prepare(Case(rows, settings, "tiny_bert", task="distillation"), tiny_bert)
    batch = case.batch()
    assert batch["teacher_ids"].shape == (2, 3, 2) and batch["teacher_logps"].shape == (2, 3, 3)
    assert torch.allclose(batch["teacher_logps"][0].exp().sum(1), torch.ones(3))
    assert batch["teacher_logps"][1, 2].tolist() == [0, 0, 0]  # it has two words
    check_another_cut_has_the_same_gradient(case)


def test_rows_that_pad_an_output_layer_are_no_tokens(tmp_path: Path, tiny_llama: Any) -> None:
    case = prepare(Case(ANSWERS, {"student_task": "sft", "teacher": "t"}, task="distillation"), tiny_llama)
    wide = copy.deepcopy(case.model)
    wide.resize_token_embeddings(len(case.reading.tokenizer) + 7, mean_resizing=False)
    wide.lm_head.weight.data[-7:] = 9.0
    batch = case.batch()
    with torch.no_grad():
        narrow, padded = (case.task.forward(model, batch) for model in (case.model, wide))
    assert narrow.shape[1] + 7 == padded.shape[1]
    assert case.task.annotate(narrow, batch) == case.task.annotate(padded, batch)
    apart = [float(case.task.loss_sum(one, batch)[1]) for one in (narrow, padded)]
    assert apart[0] == pytest.approx(apart[1], rel=1e-6) and apart[0] > 0


def test_perplexity_is_that_of_the_labels(tiny_llama: Any) -> None:
    case = prepare(Case(ANSWERS, {"student_task": "sft", "teacher": "t"}, task="distillation"), tiny_llama)
    batch = case.batch()
    with torch.no_grad():
        outputs = case.task.forward(case.model, batch)
        scores = case.task.metrics(case.task.predict(outputs, batch), 9.0, case.survey)
        mean = float(case.task.loss_sum(outputs, batch)[0]) / case.task.num_items(batch)[0]
    assert scores == {"loss": 9.0, "perplexity": pytest.approx(math.exp(mean), rel=1e-5)}
