"""Where `generate` stops after training, as plain transformers reads what was saved."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onecurve.cli import main
from onecurve.config import TaskSection
from onecurve.model.generation import settle_generation
from onecurve.tasks import load_task
from tests.launching import write_recipe
from tests.tiny_models import CHAT_TEMPLATE

PAD, EOS, END_OF_TURN = 0, 2, 4
"""Ids of the tiny Llama's <|pad|>, <|end|> and <|im_end|>."""


def load(folder: Path, template: str | None = CHAT_TEMPLATE, stops: Any = EOS) -> tuple[Any, Any]:
    """A model that stops at these tokens, and its tokenizer with this template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = stops, None
    tokenizer.chat_template = template
    return model, tokenizer


def task(name: str = "sft") -> Any:
    return load_task(TaskSection(name=name))


REFUSING = "{% if messages[0].role != 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHAT_TEMPLATE
CASES: dict[str, tuple[str | None, Any, Any]] = {
    "the end of turn joins the end token": (CHAT_TEMPLATE, EOS, [END_OF_TURN, EOS]),
    "all that the checkpoint stops at stay": (CHAT_TEMPLATE, [EOS, 7], [END_OF_TURN, EOS, 7]),
    "the tokenizer's end token joins too": (CHAT_TEMPLATE, 7, [END_OF_TURN, 7, EOS]),
    "a checkpoint that stops at nothing": (CHAT_TEMPLATE, None, [END_OF_TURN, EOS]),
    "a checkpoint that knows the end of turn": (CHAT_TEMPLATE, [7, END_OF_TURN], [7, END_OF_TURN]),
    "a template that ends turns with the end token": (CHAT_TEMPLATE.replace("<|im_end|>", "<|end|>"), EOS, EOS),
    "a template that ends turns with plain text": (CHAT_TEMPLATE.replace("<|im_end|>", " ###"), EOS, EOS),
    "a template that needs a system turn": (REFUSING, EOS, [END_OF_TURN, EOS]),
    "no template": (None, EOS, EOS),
}


@pytest.mark.parametrize(("template", "stops", "after"), CASES.values(), ids=CASES.keys())
def test_generation_stops_where_answers_end(template: str | None, stops: Any, after: Any, tiny_llama: Path) -> None:
    model, tokenizer = load(tiny_llama, template, stops)
    settle_generation(model, task(), tokenizer)
    assert model.generation_config.eos_token_id == after
    assert model.generation_config.pad_token_id == PAD


def test_documents_end_with_the_tokenizers_own_token(tiny_llama: Path) -> None:
    model, tokenizer = load(tiny_llama, stops=7)
    settle_generation(model, task("causal_lm"), tokenizer)
    assert model.generation_config.eos_token_id == [EOS, 7]


def test_a_model_that_does_not_generate_is_left_alone(tiny_bert: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    settle_generation(model, task("text_classification"), AutoTokenizer.from_pretrained(tiny_bert))
    assert getattr(model, "generation_config", None) is None


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_what_an_adapter_generates_stops_there_too(method: str, tiny_llama: Path) -> None:
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    model, tokenizer = load(tiny_llama)
    kinds = {"lora": LoraConfig, "prompt_tuning": PromptTuningConfig}
    fields = {"prompt_tuning": {"num_virtual_tokens": 2}}.get(method, {})
    adapted = get_peft_model(model, kinds[method](task_type="CAUSAL_LM", **fields))
    settle_generation(adapted, task(), tokenizer)
    assert adapted.generation_config.eos_token_id == [END_OF_TURN, EOS]
    assert model.generation_config is adapted.generation_config


@pytest.fixture
def adapter(tiny_llama: Path, tmp_path: Path) -> tuple[Path, str]:
    """An adapter's folder whose generation_config.json stops at the third token that it writes; its first two."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model, tokenizer = load(tiny_llama)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "what?"}], add_generation_prompt=True, return_tensors="pt"
    )
    prompt = {name: prompt[name] for name in ("input_ids", "attention_mask")}
    written = model.generate(**prompt, max_new_tokens=9, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
    stop = next(n for n, token in enumerate(written) if n and token not in written[:n])
    folder = tmp_path / "adapter"
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    base.name_or_path = str(tiny_llama)
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(folder)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_llama / name, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [written[stop], EOS]}))
    return folder, tokenizer.decode(written[:stop])


def test_predict_stops_where_the_adapters_folder_says(
    adapter: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, before_the_stop = adapter
    assert main(["predict", str(folder), "what?", "--max_new_tokens", "9", "--task", "sft"]) == 0
    said = capsys.readouterr().out.rstrip("\n")
    assert said.startswith(before_the_stop)
    (folder / "generation_config.json").unlink()
    assert main(["predict", str(folder), "what?", "--max_new_tokens", "9", "--task", "sft"]) == 0
    assert len(capsys.readouterr().out.rstrip("\n")) > len(said)


def test_a_merged_adapter_stops_where_its_folder_says(adapter: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = adapter
    assert main(["checkpoint", "convert", str(folder), str(tmp_path / "merged"), "--merge"]) == 0
    asked = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"] == asked


READER = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
turn = [{"role": "user", "content": "what?"}]
prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**prompt, max_new_tokens=30, do_sample=False)
print(json.dumps(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])))
"""


@pytest.mark.slow
def test_plain_transformers_stops_after_the_answer_that_was_learnt(
    forks: Any, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "what?", "response": "the dog."}) + "\n")
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        output_dir="unused",
        task={"name": "sft"},
        model={"path": str(tiny_llama)},
        data={"train": str(tmp_path / "data.jsonl"), "cache_dir": str(tmp_path / "cache")},
        optim={"lr": 1e-2},
        train={"max_steps": 30, "global_batch_size": 1, "micro_batch_size": 1},
        checkpoint={"every": 30},
    )
    run = forks.train(recipe, tmp_path / "run", "python")
    words = [sys.executable, "-c", READER, str(run.output_dir / "model")]
    read = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(read.stdout) == "the dog.<|im_end|>"
    assert main(["predict", str(run.output_dir / "model"), "what?"]) == 0
    assert capsys.readouterr().out == "the dog.\n"
    assert main(["checkpoint", "convert", str(run.output_dir), str(tmp_path / "converted")]) == 0
    config = json.loads((tmp_path / "converted" / "generation_config.json").read_text())
    assert config["eos_token_id"] == [END_OF_TURN, EOS]
