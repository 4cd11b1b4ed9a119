"""`onecurve predict` asks what training asked: plain transformers computes the same from inputs made by hand."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet

from onecurve.cli import main
from onecurve.config import TaskSection
from onecurve.model.task_file import TaskFile
from onecurve.tasks import base, load_task
from onecurve.tasks.base import Survey
from tests.launching import write_recipe
from tests.resume.forking import Forks
from tests.tasks.contract import Case, all_cases, rows_of, run_settings
from tests.tiny_models import build_tiny_llama

NEW = 5
"""Tokens to write."""
PAIR = {"prompt": "what?", "response": "the dog"}
# How completions are learnt changes nothing of what is predicted: one case of grpo
CASES = {name: case for name, case in all_cases().items() if not name.startswith("grpo, ")} | {
    "prefixed": replace(all_cases()["seq2seq"], settings={"prefix": "to dog: "}),
    "separated": Case(
        [PAIR, {"prompt": "the film", "input": "was it good?", "response": "no"}],
        {"separator": " => "}, model="plain_llama", task="sft",
    ),
}  # fmt: skip
"""The contract's, and what they lack: a prefix, and prompts without a chat template."""
LORA = ["--peft.method", "lora", "--peft.init_lora_weights", "gaussian"]
SLOW_LORA = [name for name in CASES if name not in {case.task: name for name, case in CASES.items()}.values()]


@pytest.fixture(scope="session")
def plain_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("models") / "plain", chat_template=None)


@dataclass
class Asked:
    """A trained case: its model folder, and its rows without what is learnt."""

    case: Case
    model: Path
    labelled: list[dict[str, Any]]
    rows: list[dict[str, Any]]

    @property
    def task(self) -> Any:
        return load_task(TaskSection(name=self.case.task, **self.case.settings))


class Trainer:
    """Trains each case once a session."""

    def __init__(self, forks: Forks, folder: Path, request: pytest.FixtureRequest) -> None:
        self.forks, self.folder, self.request = forks, folder, request
        self.done: dict[tuple[str, bool], Asked] = {}

    def __call__(self, name: str, lora: bool = False) -> Asked:
        if (name, lora) not in self.done:
            self.done[name, lora] = self._train(name, lora)
        return self.done[name, lora]

    def _train(self, name: str, lora: bool) -> Asked:
        case, folder = CASES[name], self.folder / f"{name}{lora}"
        folder.mkdir()
        rows = rows_of(case, load_task(TaskSection(name=case.task, **case.settings)))
        data, model = _write(folder / "rows.jsonl", rows), self.request.getfixturevalue(case.model)
        recipe = write_recipe(
            folder / "recipe.yaml",
            output_dir="unused",
            task={"name": case.task, **run_settings(case, model)},
            model={"path": str(model)},
            data={"train": str(data), "cache_dir": str(folder / "cache"), "max_length": 100},
            optim={"lr": 1e-2, "schedule": "constant"},
            train={"max_steps": 3, "global_batch_size": len(rows), "micro_batch_size": 1},
        )
        run = self.forks.train(recipe, folder / "run", "python", *(LORA if lora else []))
        # A prompt that stands in its answers alone is gone with them
        task = load_task(TaskSection(name=case.task, **case.settings))
        pairs = [(row, bare) for row in rows if (bare := _unlabelled(row, task))]
        return Asked(case, run.output_dir / "model", [row for row, _ in pairs], [bare for _, bare in pairs])


@pytest.fixture(scope="module")
def trained(forks: Forks, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Trainer:
    return Trainer(forks, tmp_path_factory.mktemp("asked"), request)


def _unlabelled(row: dict[str, Any], task: Any) -> dict[str, Any]:
    row = {name: value for name, value in row.items() if name not in task.targets}
    if "messages" in row:
        row["messages"] = row["messages"][:-1]
    return row | {"text": f"{row['text']} [MASK]"} if isinstance(task, base.Asked) and "text" in row else row


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def ask(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["predict", *map(str, words), "--json", "--max_new_tokens", str(NEW)]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refusal(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == 2
    out, said = capsys.readouterr()
    assert out == "" and len(said.splitlines()) == 1, out + said
    return said


def assert_same(ours: Any, theirs: Any) -> None:
    """Compare answers: numbers up to float noise."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list):
        for mine, right in zip(ours, theirs, strict=True):
            assert_same(mine, right)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=2e-5, abs=1e-6)
    else:
        assert ours == theirs


# What somebody else computes, one row at a time


def _loaded(model: Path, kind: str) -> tuple[Any, Any]:
    import transformers

    loaded = getattr(transformers, kind).from_pretrained(model).eval()
    return loaded, transformers.AutoTokenizer.from_pretrained(model)


def _classified(asked: Asked) -> list[dict[str, Any]]:
    model, tokenizer = _loaded(asked.model, "AutoModelForSequenceClassification")
    inputs = [tokenizer(row["text"], row.get("text_pair"), return_tensors="pt") for row in asked.rows]
    return _told(asked, model, inputs)


def _seen(asked: Asked) -> list[dict[str, Any]]:
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(asked.model).eval()
    processor = AutoImageProcessor.from_pretrained(asked.model)
    images = [Image.open(row["image"]["path"]).convert("RGB") for row in asked.rows]
    return _told(asked, model, [processor(images=image, return_tensors="pt") for image in images])


def _listening(asked: Asked, auto: Any) -> Any:
    from peft import PeftConfig, PeftModel

    if (asked.model / "adapter_config.json").is_file():  # transformers' own load_adapter of these models is another
        base = PeftConfig.from_pretrained(asked.model).base_model_name_or_path
        return PeftModel.from_pretrained(auto.from_pretrained(base), asked.model).eval()
    return auto.from_pretrained(asked.model).eval()


def _heard(asked: Asked) -> list[dict[str, Any]]:
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    model = _listening(asked, AutoModelForAudioClassification)
    extractor, clips = AutoFeatureExtractor.from_pretrained(asked.model), map(_clip, asked.rows)
    return _told(asked, model, [extractor(wave, sampling_rate=rate, return_tensors="pt") for wave, rate in clips])


def _transcribed(asked: Asked) -> list[str]:
    from transformers import AutoModelForCTC, AutoProcessor

    processor, texts = AutoProcessor.from_pretrained(asked.model), []
    model = _listening(asked, AutoModelForCTC)
    for row in asked.rows:
        wave, rate = _clip(row)
        with torch.no_grad():
            logits = model(**processor(wave, sampling_rate=rate, return_tensors="pt")).logits
        texts += processor.batch_decode(logits.argmax(-1))
    return texts


def _clip(row: dict[str, Any]) -> tuple[Any, int]:
    import soundfile

    wave, rate = soundfile.read(row["audio"]["path"], dtype="float32")
    return wave, rate


def _told(asked: Asked, model: Any, inputs: list[Any]) -> list[dict[str, Any]]:
    answers = []
    for each in inputs:
        with torch.no_grad():
            logits = model(**each).logits[0]
        names = [model.config.id2label[number] for number in range(len(logits))]
        problem = asked.case.settings.get("problem_type")
        if problem == "regression":
            answers.append({"value": float(logits[0])})
        elif problem == "multi_label_classification":
            found = dict(zip(names, logits.sigmoid().tolist(), strict=True))
            answers.append({"label": [name for name in names if found[name] > 0.5], "probabilities": found})
        else:
            found = dict(zip(names, logits.softmax(-1).tolist(), strict=True))
            best = max(found, key=found.__getitem__)
            answers.append({"label": best, "probability": found[best], "probabilities": found})
    return answers


def _tagged(asked: Asked) -> list[list[str]]:
    model, tokenizer = _loaded(asked.model, "AutoModelForTokenClassification")
    answers = []
    for row in asked.rows:
        text = " ".join(row["tokens"])
        encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        spans = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            tags = model(**encoded).logits[0].argmax(-1).tolist()
        starts = [len(" ".join([*row["tokens"][:n], ""])) for n in range(len(row["tokens"]))]
        firsts = [next(place for place, (_, end) in enumerate(spans) if end > start) for start in starts]
        answers.append([model.config.id2label[tags[place]] for place in firsts])
    return answers


def _written(model: Any, tokenizer: Any, ids: list[int]) -> str:
    inputs = torch.tensor([ids])
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    with torch.no_grad():
        out = model.generate(inputs, attention_mask=torch.ones_like(inputs), **options)[0]
    return tokenizer.decode(out if model.config.is_encoder_decoder else out[len(ids) :], skip_special_tokens=True)


def _continued(asked: Asked) -> list[str]:
    model, tokenizer = _loaded(asked.model, "AutoModelForCausalLM")
    bos = tokenizer.convert_tokens_to_ids("<|begin|>")
    texts = [tokenizer(row["text"], add_special_tokens=False)["input_ids"] for row in asked.rows]
    return [_written(model, tokenizer, [bos, *ids]) for ids in texts]


def _answered(asked: Asked) -> list[str]:
    model, tokenizer = _loaded(asked.model, "AutoModelForCausalLM")
    answers = []
    for row in asked.rows:
        about = f"\n{row['input']}" if "input" in row else ""
        turns = row.get("messages") or [{"role": "user", "content": row.get("prompt", "") + about}]
        if separator := asked.case.settings.get("separator"):
            text, bos = turns[0]["content"] + separator, [tokenizer.convert_tokens_to_ids("<|begin|>")]
        else:
            shown = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
            text, bos = f"{shown}<|im_start|>assistant\n", []
        answers.append(_written(model, tokenizer, [*bos, *tokenizer(text, add_special_tokens=False)["input_ids"]]))
    return answers


def _translated(asked: Asked) -> list[str]:
    model, tokenizer = _loaded(asked.model, "AutoModelForSeq2SeqLM")
    eos, prefix = tokenizer.convert_tokens_to_ids("</s>"), asked.case.settings.get("prefix", "")
    texts = [tokenizer(prefix + row["source"], add_special_tokens=False)["input_ids"] for row in asked.rows]
    return [_written(model, tokenizer, [tokenizer.convert_tokens_to_ids("<s>"), *ids, eos]) for ids in texts]


def _filled(asked: Asked) -> list[dict[str, Any]]:
    from transformers import pipeline

    told = pipeline("fill-mask", str(asked.model))([row["text"] for row in asked.rows])
    names = {"token_str": "token", "token": "id", "score": "probability"}
    return [{"fills": [[{ours: one[theirs] for theirs, ours in names.items()} for one in row]]} for row in told]


ORACLES = {
    "masked_lm": _filled,
    "text_classification": _classified,
    "image_classification": _seen,
    "audio_classification": _heard,
    "speech_recognition": _transcribed,
    "token_classification": _tagged,
    "causal_lm": _continued,
    "sft": _answered,
    "seq2seq_lm": _translated,
}
"""Of the tasks that come with the package; another one's answers are compared with themselves."""


def check(trained: Trainer, name: str, lora: bool, capsys: Any, tmp_path: Path) -> None:
    asked = trained(name, lora)
    path = _write(tmp_path / "rows.jsonl", asked.rows)
    one, three = (ask(capsys, asked.model, "--input", path, "--batch_size", size) for size in (1, 3))
    assert [answer.pop("id") for answer in one] == [answer.pop("id") for answer in three] == [*range(len(asked.rows))]
    for ours, theirs in zip(one, three, strict=True):
        assert_same(ours, theirs)
    assert not any("error" in answer for answer in one), one
    if asked.case.task in ORACLES:
        expected = ORACLES[asked.case.task](asked)
        kind = "text" if "text" in one[0] else "tags"
        ours = [answer[kind] for answer in one] if isinstance(expected[0], str | list) else one
        for mine, right in zip(ours, expected, strict=True):
            assert_same(mine, right)
    if not lora:  # labels that are there change nothing
        labelled = [{**full, **row} for full, row in zip(asked.labelled, asked.rows, strict=True)]
        again = ask(capsys, asked.model, "--input", _write(path, labelled), "--batch_size", 3)
        assert [{k: v for k, v in answer.items() if k != "id"} for answer in again] == three


@pytest.mark.parametrize("name", CASES)
def test_answers_are_what_plain_transformers_computes(trained: Trainer, name: str, capsys: Any, tmp_path: Path) -> None:
    check(trained, name, False, capsys, tmp_path)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW_LORA else ()) for n in CASES])
def test_an_adapter_answers_so_too(trained: Trainer, name: str, capsys: Any, tmp_path: Path) -> None:
    check(trained, name, True, capsys, tmp_path)


# How rows come in


def test_every_way_in_asks_the_same(trained: Trainer, capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    asked = trained("single_label")
    texts = [row["text"] for row in asked.rows]
    rows = _write(tmp_path / "rows.jsonl", asked.rows)
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    expected = ask(capsys, asked.model, "--input", rows)
    assert ask(capsys, asked.model, *texts) == expected
    assert ask(capsys, asked.model, *(word for text in texts for word in ("--text", text))) == expected
    assert ask(capsys, asked.model, "--input", tmp_path / "rows.csv") == expected
    for words in ([], ["--input", "-"]):
        for lines in (rows.read_text(), "\n\n".join(texts)):
            monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
            assert ask(capsys, asked.model, *words) == expected
    assert ask(capsys, asked.model, "--input", rows, "--output", tmp_path / "out.jsonl") == []
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == expected


def test_columns_to_keep_stand_beside_each_answer(trained: Trainer, capsys: Any, tmp_path: Path, monkeypatch: Any):
    asked = trained("single_label")
    expected = ask(capsys, asked.model, "--input", _write(tmp_path / "bare.jsonl", asked.rows))
    # By the file's own names: what the task reads, what it learns, and what it does not know
    kept = [{"date": f"2026-03-{n:02}", "label": "x", "text": row["text"]} for n, row in enumerate(asked.rows, 1)]
    path = _write(tmp_path / "rows.jsonl", [{"day": 1, **row} for row in kept])
    expected = [{"id": one["id"], "kept": row, **one} for one, row in zip(expected, kept, strict=True)]
    words = ["--keep", "date", "label", "text"]
    assert ask(capsys, asked.model, "--input", path, *words) == expected
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([[*kept[0]], *(row.values() for row in kept)])
    assert ask(capsys, asked.model, "--input", tmp_path / "rows.csv", *words) == expected
    table = [{**row, "date": date.fromisoformat(row["date"])} for row in kept]
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "rows.parquet")
    assert ask(capsys, asked.model, "--input", tmp_path / "rows.parquet", *words) == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(path.read_text()))
    assert ask(capsys, asked.model, *words) == expected
    assert "there is no column 'dat'; the columns are: day, date, label, text." in refusal(
        capsys, asked.model, "--input", path, "--json", "--keep", "dat"
    )
    for given in (["--input", path], [asked.rows[0]["text"], "--json"]):
        assert "--keep: repeats columns of rows in JSON objects" in refusal(
            capsys, asked.model, *given, "--keep", "date"
        )


def test_the_command_itself_reads_standard_input(trained: Trainer) -> None:
    asked = trained("single_label")
    command = [sys.executable, "-m", "onecurve", "predict", str(asked.model), "--input", "-"]
    done = subprocess.run(command, input=asked.rows[1]["text"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"\t{asked.rows[1]['text']}\n")


def test_words_come_from_conll_files_and_are_shown_with_their_entities(trained: Trainer, capsys: Any, tmp_path: Path):
    asked = trained("tags")
    sentences = ("".join(f"{word}\tO\n" for word in row["tokens"]) for row in asked.rows)
    (tmp_path / "rows.conll").write_text("\n".join(sentences))
    words = [f"{n}\t{word}" + "\t_" * 8 + "\n" for n, word in enumerate(asked.rows[0]["tokens"], 1)]
    (tmp_path / "rows.conllu").write_text("".join(words))
    expected = ask(capsys, asked.model, "--input", _write(tmp_path / "rows.jsonl", asked.rows))
    assert ask(capsys, asked.model, "--input", tmp_path / "rows.conll") == expected
    assert ask(capsys, asked.model, "--input", tmp_path / "rows.conllu") == expected[:1]
    text = " ".join(asked.rows[0]["tokens"])
    assert ask(capsys, asked.model, text) == expected[:1]
    assert main(["predict", str(asked.model), text]) == 0
    said, _, of = capsys.readouterr().out.rstrip("\n").partition("\t")
    entities = expected[0]["entities"]
    assert of == text and said == (", ".join(f"{e['type']} {e['text']!r}" for e in entities) or "(none)")


def test_tags_that_are_no_entities_are_shown_as_they_are() -> None:
    from onecurve.prediction.answers import plain

    assert plain({"tags": ["DET", "NOUN"]}, ["the", "dog"]) == "DET NOUN\tthe dog"


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "what?", "input": "a dog"}, "what?\na dog"),
        ({"instruction": "what?", "context": "a dog", "id": "x"}, "what?\na dog"),
        ({"instruction": "what?", "input": "", "output": "a cat"}, "what?"),
    ],
)
def test_known_forms_of_row_are_read_without_their_answer(
    trained: Trainer, capsys: Any, tmp_path: Path, monkeypatch: Any, row: dict[str, Any], prompt: str
) -> None:
    asked = trained("sft")
    (expected,) = ask(capsys, asked.model, prompt)
    expected["id"] = row.get("id", 0)
    assert ask(capsys, asked.model, "--input", _write(tmp_path / "rows.jsonl", [row])) == [expected]
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(row)))
    assert ask(capsys, asked.model) == [expected]


# What cannot be answered


def test_a_bad_row_is_told_and_the_others_are_answered(trained: Trainer, capsys: Any, tmp_path: Path) -> None:
    asked = trained("single_label")
    texts = [row["text"] for row in asked.rows]
    expected = ask(capsys, asked.model, *texts)
    path = tmp_path / "rows.jsonl"
    lines = [{"id": "a", "text": texts[0]}, {"id": 7, "text": " "}, {"text": texts[2]}]
    path.write_text("\n".join([*map(json.dumps, lines), "{broken"]))
    first, second, third, fourth = ask(capsys, asked.model, "--input", path, code=1)
    assert first == {**expected[0], "id": "a"} and third == expected[2]
    assert second == {"id": 7, "error": "text is empty"}
    assert fourth["id"] == 3 and fourth["error"].startswith("invalid JSON")
    assert main(["predict", str(asked.model), "--input", str(path)]) == 1
    out, said = capsys.readouterr()
    assert len(out.splitlines()) == 4 and "2 of 4 rows could not be used" in said


def test_a_row_that_is_too_long_is_cut_and_says_so(trained: Trainer, capsys: Any) -> None:
    for name, long in (("single_label", "dog " * 99), ("tags", "dog " * 99), ("prefixed", "dog " * 99)):
        asked = trained(name)
        short, cut = ask(capsys, asked.model, "the dog", long)
        assert cut["truncated"] is True and "truncated" not in short, name


def test_a_source_as_long_as_training_allowed_is_read_whole(trained: Trainer, capsys: Any) -> None:
    from transformers import AutoTokenizer

    asked = trained("seq2seq")
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    text = next(t for t in ("A" * n for n in range(20, 200)) if len(tokenizer(t)["input_ids"]) == 100)
    (answer,) = ask(capsys, asked.model, text)
    assert set(answer) == {"id", "text"}


def test_a_prompt_that_leaves_no_room_is_told(trained: Trainer, capsys: Any, tmp_path: Path) -> None:
    (answer,) = ask(capsys, trained("causal_lm").model, "dog " * 200, code=1)
    assert "and the model reads and writes 100 in all" in answer["error"]
    short = build_tiny_llama(tmp_path / "short", max_position_embeddings=16)
    told, fine = ask(capsys, short, "A" * 12, "a", "--task", "causal_lm", code=1)
    assert "max_new_tokens may be at most" in told["error"] and "text" in fine


# Which model


def test_a_folder_without_task_json_is_asked_by_the_one_task_that_fits(
    trained: Trainer, capsys: Any, tmp_path: Path, tiny_llama: Path
) -> None:
    for name in ("single_label", "tags", "seq2seq", "regression", "multi_label"):
        asked = trained(name)
        rows = _write(tmp_path / "rows.jsonl", asked.rows)
        expected = ask(capsys, asked.model, "--input", rows)
        bare = shutil.copytree(asked.model, tmp_path / name)
        (bare / "task.json").unlink()
        assert ask(capsys, bare, "--input", rows) == expected, name
    asked = trained("causal_lm")
    bare = shutil.copytree(asked.model, tmp_path / "bare")
    (bare / "task.json").unlink()
    assert "causal_lm and sft fit it. Name one with --task." in refusal(capsys, bare, "the dog")
    assert ask(capsys, bare, "the dog", "--task", "causal_lm") == ask(capsys, asked.model, "the dog")
    assert "was trained for causal_lm" in refusal(capsys, asked.model, "the dog", "--task", "sft")


def test_a_foreign_regressor_gives_numbers(capsys: Any, tmp_path: Path, tiny_bert: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=1).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    (answer,) = ask(capsys, tmp_path, "the dog")
    assert set(answer) == {"id", "value"}


def test_a_model_stored_in_half_is_asked_in_what_the_machine_computes(
    trained: Trainer, capsys: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    from onecurve.machine.distributed import computes_natively

    asked = trained("single_label")
    folder = tmp_path / "half"
    shutil.copytree(asked.model, folder)
    AutoModelForSequenceClassification.from_pretrained(asked.model, dtype=torch.bfloat16).save_pretrained(folder)
    (answer,) = ask(capsys, folder, asked.rows[0]["text"])
    model, tokenizer = _loaded(folder, "AutoModelForSequenceClassification")
    assert model.dtype == torch.bfloat16
    model = model if computes_natively("bf16") else model.float()
    with torch.no_grad():
        logits = model(**tokenizer(asked.rows[0]["text"], return_tensors="pt")).logits[0]
    assert answer["probability"] == pytest.approx(float(logits.float().softmax(-1).max()), rel=1e-5)


@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "adapter"])
def test_a_regressor_stored_in_half_gives_numbers_that_half_precision_rounds(
    capsys: Any, tmp_path: Path, tiny_bert: Path, adapted: bool
) -> None:
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    from onecurve.adapters import add_adapter
    from onecurve.config import PeftSection
    from onecurve.export.model_folder import save_alone
    from onecurve.losses.float32_output import return_float32

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    AutoModel.from_pretrained(tiny_bert, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    base.config.problem_type = "regression"
    return_float32(base)
    peft = PeftSection(method="lora")
    model = add_adapter(base, peft, task_type="SEQ_CLS", new_modules=["classifier"]) if adapted else base
    for name, parameter in model.named_parameters():
        if "classifier" in name and parameter.requires_grad:
            torch.nn.init.constant_(parameter, 2015 if name.endswith("bias") else 0)
    task = load_task(TaskSection(name="text_classification", problem_type="regression"))
    told = TaskFile.of("text_classification", task, Survey(), {}, 100)
    save_alone(tmp_path / "saved", model, tokenizer, str, told)
    (answer,) = ask(capsys, tmp_path / "saved", "the dog")
    assert answer["value"] == (2015 if adapted else 2016)  # whole, its very bias is stored in half
    if adapted:
        code = {}
        for snippet in re.findall(r"```python\n(.*?)```", (tmp_path / "saved" / "README.md").read_text(), re.DOTALL):
            exec(snippet.replace("print(", "value = ("), code)
        assert code["value"][0]["score"]
        with torch.no_grad():
            assert float(code["model"](**tokenizer("the dog", return_tensors="pt")).logits) == 2015


def test_a_model_that_reads_its_padding_is_given_none(capsys: Any, tmp_path: Path, tiny_bert: Path) -> None:
    from transformers import AutoTokenizer, FNetConfig, FNetForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3}
    FNetForSequenceClassification(FNetConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["the dog", "a fox", "the lazy dog and the fox", "no", "the dog sleeps in the sun", "and the fox"]
    rows = _write(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    asked = ["--task", "text_classification", "--input", rows, "--batch_size"]
    together, alone = (ask(capsys, tmp_path, *asked, size) for size in (6, 1))
    for ours, theirs in zip(together, alone, strict=True):
        assert_same(ours, theirs)
    model, _ = _loaded(tmp_path, "AutoModelForSequenceClassification")
    with torch.no_grad():  # and so plain transformers, which pads; or it would prove nothing
        padded = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(-1)
    assert any(abs(a["probabilities"]["LABEL_0"] - float(b)) > 1e-3 for a, b in zip(alone, padded[:, 0], strict=True))


def test_prompts_are_not_padded_for_a_decoder_that_reads_padding_before_them(
    capsys: Any, tmp_path: Path, plain_llama: Path
) -> None:
    from transformers import AutoTokenizer, RwkvConfig, RwkvForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(plain_llama)
    torch.manual_seed(0)
    model = RwkvForCausalLM(RwkvConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = _write(tmp_path / "rows.jsonl", [{"text": text} for text in ("the dog", "a lazy fox and the dog", "no")])
    asked = ["--task", "causal_lm", "--input", rows, "--batch_size"]
    assert ask(capsys, tmp_path, *asked, 3) == ask(capsys, tmp_path, *asked, 1)


def test_mistakes_are_one_message(trained: Trainer, capsys: Any, tmp_path: Path, tiny_bert: Path) -> None:
    asked = trained("single_label")
    rows = _write(tmp_path / "rows.jsonl", asked.rows)
    before = rows.read_text()
    assert "texts and --input" in refusal(capsys, asked.model, "the dog", "--input", rows)
    assert "is not a model folder" in refusal(capsys, tmp_path, "the dog")
    assert "no such file" in refusal(capsys, asked.model, "--input", tmp_path / "none.jsonl")
    assert "--output" in refusal(capsys, asked.model, "the dog", "--output", tmp_path / "none" / "out")
    assert "is what --input reads" in refusal(capsys, asked.model, "--input", rows, "--output", rows)
    assert "--batch_size" in refusal(capsys, asked.model, "the dog", "--batch_size", 0)
    assert "--max_new_tokens" in refusal(capsys, asked.model, "the dog", "--max_new_tokens", 0)
    assert rows.read_text() == before
