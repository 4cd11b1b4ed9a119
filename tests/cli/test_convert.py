"""`onecurve checkpoint convert`: leaving with any step of a run, and coming in with what others leave."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer
from onecurve.cli import main
from onecurve.config import load_recipe
from onecurve.errors import ConfigError
from tests.launching import train, write_recipe
from tests.tiny_models import build_tiny_bert, build_tiny_llama

TEXTS = ["profit 3 rises in Oslo", "loss"]
ROWS = [{"text": f"{'profit' if i % 2 else 'loss'} {i} in Oslo", "label": ("up", "down")[i % 2]} for i in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert")
    build_tiny_bert(folder / "bert")
    build_tiny_llama(folder / "llama")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def recipe(folder, name, model, **sections):
    data = str(folder / "data.jsonl")
    return write_recipe(
        folder / f"{name}.yaml",
        output_dir="unused",
        task={"name": name},
        model={"path": str(model)},
        data={"train": data, "eval": data, "cache_dir": str(folder / "cache")},
        **{
            "train": {"max_steps": 4, "global_batch_size": 8, "micro_batch_size": 4},
            "checkpoint": {"every": 1, "keep": 9},
            **sections,
        },
    )


@pytest.fixture(scope="module")
def classified(folder):
    """A full run with labels that a learning rate ruins late: `model/` is an earlier step's."""
    optim = {"lr": 0.1, "warmup_steps": 3, "schedule": "constant"}
    path = recipe(folder, "text_classification", folder / "bert", optim=optim)
    return train(path, folder / "classified", "python", "--eval.every", "1", "--eval.best_metric", "loss")


@pytest.fixture(scope="module")
def adapted(folder):
    """A LoRA run under ZeRO-3."""
    path = recipe(folder, "causal_lm", folder / "llama", optim={"lr": 0.05}, peft={"method": "lora"})
    return train(path, folder / "adapted", "zero3")


def convert(*arguments) -> int:
    return main(["checkpoint", "convert", *map(str, arguments)])


def refusal(capsys, *arguments) -> str:
    capsys.readouterr()
    assert convert(*arguments) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1, said
    return said


def logits(path, kind="AutoModelForSequenceClassification", adapter=None):
    """What a user computes with a folder: plain transformers and PEFT, in float32."""
    import transformers
    from peft import PeftModel

    model = getattr(transformers, kind).from_pretrained(path, dtype="float32")
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    return compute(model, transformers.AutoTokenizer.from_pretrained(path))


def compute(model, tokenizer):
    with torch.no_grad():
        return model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def same_tensors(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def start(path, tokenizer=None, task="text_classification", labels=("a", "b", "c")):
    """The model that a run with these labels would start from, with `model.path` set so."""
    from onecurve.model.loading import load_model
    from onecurve.model.reading import Reading
    from onecurve.tasks import load_task
    from onecurve.tasks.base import Survey

    overrides = ["--model.path", str(path), *(["--model.tokenizer", str(tokenizer)] if tokenizer else [])]
    folder = Path(path).parent
    read, _ = load_recipe([str(recipe(folder, task, path)), *overrides])
    task = load_task(read.task)
    reading = Reading(read.model, None, task.auto_processor)
    model = load_model(read, task, reading.config, Survey(list(labels)), "no")
    return model, reading.tokenizer


# Leaving


def test_each_step_converts_to_what_the_run_exports_at_it(classified, tmp_path):
    best = classified.events("end")[0]["step"]
    assert best < 4, "the planted late ruin did not happen"
    exported = classified.output_dir / "model"
    for name, which, source, expected in (
        ("last", [], classified.output_dir, "model-last"),
        ("best", ["--which", "best"], classified.output_dir, "model"),
        ("then", [], classified.output_dir / "checkpoints" / f"step-{best:08d}", "model"),
    ):
        target = tmp_path / name
        assert convert(source, target, *which) == 0
        assert same_tensors(target / "model.safetensors", classified.output_dir / expected / "model.safetensors")
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            assert (target / file).read_text() == (exported / file).read_text(), file
        assert torch.equal(logits(target), logits(classified.output_dir / expected))
    assert f"the weights of step {best}" in (tmp_path / "best" / "README.md").read_text()
    assert not same_tensors(tmp_path / "best" / "model.safetensors", tmp_path / "last" / "model.safetensors")


def test_an_adapter_leaves_as_an_adapter_or_merged(folder, adapted, tmp_path, capsys):
    exported = adapted.output_dir / "model"
    assert convert(adapted.output_dir, tmp_path / "adapter") == 0
    assert same_tensors(tmp_path / "adapter" / "adapter_model.safetensors", exported / "adapter_model.safetensors")
    assert (tmp_path / "adapter" / "config.json").read_text() == (exported / "config.json").read_text()
    ours, theirs = (json.loads((path / "adapter_config.json").read_text()) for path in (tmp_path / "adapter", exported))
    assert sorted(ours.pop("target_modules")) == sorted(theirs.pop("target_modules"))  # a set, written in any order
    assert ours == theirs
    assert convert(adapted.output_dir, tmp_path / "merged", "--merge") == 0
    assert convert(tmp_path / "adapter", tmp_path / "merged-later", "--merge") == 0
    kind = "AutoModelForCausalLM"
    expected = logits(folder / "llama", kind, adapter=exported)
    assert not torch.allclose(logits(folder / "llama", kind), expected, atol=1e-3), "the adapter learnt nothing"
    for name in ("merged", "merged-later"):
        assert not (tmp_path / name / "adapter_config.json").exists()
        torch.testing.assert_close(logits(tmp_path / name, kind), expected, rtol=1e-4, atol=1e-5)


def test_a_run_without_checkpoints_is_its_model_folder(folder, adapted, classified, tmp_path, capsys):
    for name, run in (("adapted", adapted), ("whole", classified)):
        (tmp_path / name).mkdir()
        shutil.copy(run.output_dir / "config.yaml", tmp_path / name)
        shutil.copytree(run.output_dir / "model", tmp_path / name / "model", symlinks=True)
    assert convert(tmp_path / "adapted", tmp_path / "merged", "--merge") == 0
    kind = "AutoModelForCausalLM"
    expected = logits(folder / "llama", kind, adapter=adapted.output_dir / "model")
    torch.testing.assert_close(logits(tmp_path / "merged", kind), expected, rtol=1e-4, atol=1e-5)
    said = refusal(capsys, tmp_path / "adapted", tmp_path / "new")
    assert f"'{tmp_path / 'adapted' / 'model'}' is a PEFT adapter" in said
    assert f"'{tmp_path / 'whole' / 'model'}' is not an adapter" in refusal(
        capsys, tmp_path / "whole", tmp_path / "new", "--merge"
    )


def test_an_adapter_whose_base_is_gone_is_refused_by_the_base_s_name(adapted, tmp_path, capsys):
    shutil.copytree(adapted.output_dir / "model", tmp_path / "model", symlinks=True)
    for link in (tmp_path / "model").rglob("model.safetensors"):
        link.unlink()
        link.symlink_to(tmp_path / "gone" / "llama" / "model.safetensors")
    settings = tmp_path / "model" / "adapter_config.json"
    for named in (tmp_path / "gone" / "llama", tmp_path / "elsewhere" / "base"):
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "base_model_name_or_path": str(named)}))
        said = refusal(capsys, tmp_path / "model", tmp_path / "new", "--merge")
        assert f"no such folder: '{tmp_path / 'gone' / 'llama'}'" in said


@pytest.mark.slow
def test_a_run_starts_from_a_converted_checkpoint(folder, classified, tmp_path):
    assert convert(classified.output_dir, tmp_path / "model", "--which", "best") == 0
    path = recipe(folder, "text_classification", tmp_path / "model", optim={"lr": 1e-12})
    run = train(path, tmp_path / "run", "python", "--train.max_steps", "1", "--checkpoint.every", "0")
    scored = {event["step"]: event["loss"] for event in classified.events("eval")}
    (first,) = run.events("eval")
    assert first["loss"] == pytest.approx(min(scored.values()), rel=1e-6)


def test_what_cannot_leave_is_refused(folder, classified, adapted, tmp_path, capsys):
    root = classified.output_dir / "checkpoints"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "exists and is not empty" in refusal(capsys, root, tmp_path / "full")
    assert os.listdir(tmp_path / "full") == ["mine.txt"]
    assert "keeps no best weights" in refusal(capsys, adapted.output_dir, tmp_path / "new", "--which", "best")
    (tmp_path / "old").mkdir()
    writer = Writer(tmp_path / "old" / "checkpoints", Alone(), Retention(1))
    writer.save(1, [TensorWindow("param/w", torch.ones(2), 0, 2, (2,))], {"run_id": "r"})
    writer.wait()
    assert "has no survey" in refusal(capsys, tmp_path / "old", tmp_path / "new")
    assert "nothing to merge" in refusal(capsys, root, tmp_path / "new", "--merge")
    assert "has its own labels" in refusal(capsys, root, tmp_path / "new", "--labels", "a", "b")

    alone = tmp_path / "elsewhere" / "checkpoints" / "step-00000004"
    shutil.copytree(root / "step-00000004", alone)
    assert "no config.yaml of the run" in refusal(capsys, alone, tmp_path / "new")
    config = classified.output_dir / "config.yaml"
    assert "peft.method is 'lora' and was None" in refusal(
        capsys, alone, tmp_path / "new", "--config", adapted.output_dir / "config.yaml"
    )
    moved = config.read_text().replace(str(folder / "bert"), str(tmp_path / "gone"))
    (tmp_path / "moved.yaml").write_text(moved)
    said = refusal(capsys, alone, tmp_path / "new", "--config", tmp_path / "moved.yaml")
    assert f"{tmp_path / 'moved.yaml'}: model.path: no such folder: '{tmp_path / 'gone'}'" in said
    assert convert(alone, tmp_path / "given", "--config", config) == 0

    file = next(alone.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    said = refusal(capsys, alone, tmp_path / "new", "--config", config)
    assert "is damaged" in said
    assert file.name in said
    assert not (tmp_path / "new").exists()


# Coming in


@pytest.fixture(scope="module")
def trainer_folder(folder):
    """A real Trainer checkpoint of a classifier of three labels, without a tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    rows = [{**tokenizer(row["text"]), "labels": i % 3} for i, row in enumerate(ROWS[:8])]
    rows = [{k: v[:10] if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    arguments = TrainingArguments(
        str(folder / "trainer"), max_steps=2, save_steps=2, per_device_train_batch_size=4, learning_rate=1e-2,
        use_cpu=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    names = {0: "a", 1: "b", 2: "c"}
    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "bert", num_labels=3, id2label=names, label2id={name: index for index, name in names.items()}
    )
    Trainer(model, arguments, train_dataset=rows).train()
    checkpoint = folder / "trainer" / "checkpoint-2"
    assert (checkpoint / "optimizer.pt").is_file()
    model.save_pretrained(folder / "sharded", max_shard_size="50KB")
    assert len(list((folder / "sharded").glob("model-*.safetensors"))) > 1
    return checkpoint, compute(model, tokenizer)


def test_a_run_starts_from_a_trainer_checkpoint_or_shards(folder, trainer_folder):
    checkpoint, expected = trainer_folder
    for path in (checkpoint, folder / "sharded"):
        with pytest.raises(ConfigError, match=r"holds no tokenizer_config.json or .* set model.tokenizer"):
            start(path)
        assert torch.equal(compute(*start(path, tokenizer=folder / "bert")), expected)


def test_a_trainer_checkpoint_becomes_a_plain_folder(folder, trainer_folder, tmp_path, capsys):
    checkpoint, expected = trainer_folder
    assert "has no tokenizer" in refusal(capsys, checkpoint, tmp_path / "new")
    for source in (checkpoint, folder / "sharded"):
        target = tmp_path / source.name
        assert convert(source, target, "--config", folder / "bert") == 0
        assert torch.equal(logits(target), expected)
        assert {"optimizer.pt", "trainer_state.json"}.isdisjoint(os.listdir(target))
        assert list(json.loads((target / "config.json").read_text())["id2label"].values()) == ["a", "b", "c"]
    assert torch.equal(compute(*start(tmp_path / "sharded")), expected)


@pytest.fixture(scope="module")
def accelerated(folder):
    """What Accelerate's save_state leaves of a classifier of three labels: safetensors, a pickle, a compiled model."""
    from accelerate import Accelerator
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    accelerator, tokenizer = Accelerator(cpu=True), AutoTokenizer.from_pretrained(folder / "bert")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "bert", num_labels=3)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    for _ in range(2):
        batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
        accelerator.backward(model(**batch, labels=torch.tensor([0, 2])).loss)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state(str(folder / "safe"))
    accelerator.save_state(str(folder / "pickled"), safe_serialization=False)
    accelerator._models.clear()
    accelerator.prepare(torch.compile(model))
    accelerator.save_state(str(folder / "compiled"))
    accelerator.prepare(torch.nn.Linear(1, 1))
    accelerator.save_state(str(folder / "several"))
    assert any(name.startswith("_orig_mod.") for name in load_file(folder / "compiled" / "model.safetensors"))
    return compute(model, tokenizer)


@pytest.mark.parametrize("name", ["safe", "pickled", "compiled"])
def test_an_accelerate_state_becomes_a_plain_folder(folder, accelerated, tmp_path, name):
    labels = ["--labels", "up", "down", "flat"]
    assert convert(folder / name, tmp_path / "new", "--config", folder / "bert", *labels) == 0
    assert torch.equal(logits(tmp_path / "new"), accelerated)
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["up", "down", "flat"]
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert torch.equal(compute(*start(tmp_path / "new", labels=("up", "down", "flat"))), accelerated)


def test_what_cannot_come_in_is_refused(folder, accelerated, tmp_path, capsys):
    new = tmp_path / "new"
    assert "Name the model it was trained from" in refusal(capsys, folder / "safe", new)
    said = refusal(capsys, folder / "safe", new, "--config", folder / "bert")
    assert "classifier.weight is [3, 64], not [2, 64]" in said
    assert "--labels" in said
    assert "are not those of a" in refusal(capsys, folder / "safe", new, "--config", folder / "llama")
    assert "several models: model_1.safetensors" in refusal(capsys, folder / "several", new, "--config", "x")
    assert "holds no config.json" in refusal(capsys, folder / "safe", new, "--config", folder / "safe")
    said = refusal(capsys, folder, new)
    assert "no weights found. Looked for" in said
    assert "no such folder" in refusal(capsys, tmp_path / "gone", new)
    assert "nothing to merge" in refusal(capsys, folder / "safe", new, "--merge")
    torn = tmp_path / "torn"
    shutil.copytree(folder / "safe", torn)
    os.truncate(torn / "model.safetensors", 1000)
    assert f"{torn / 'model.safetensors'}: cannot be read" in refusal(capsys, torn, new, "--config", folder / "bert")
    assert not new.exists()
    with pytest.raises(ConfigError, match="onecurve checkpoint convert"):
        start(folder / "safe")
    shutil.copy(folder / "bert" / "config.json", torn)
    with pytest.raises(ConfigError, match=r"model\.path: .* has a weight file that is cut off or damaged"):
        start(torn, tokenizer=folder / "bert")


class Evil:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return (open, (str(self.witness), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "global_step1/zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_no_pickle_runs_code(folder, tmp_path, capsys, name):
    source, witness = tmp_path / "source", tmp_path / "witness"
    (source / name).parent.mkdir(parents=True)
    torch.save({"weight": Evil(witness)}, source / name)
    torch.save({"buffer_names": Evil(witness)}, (source / name).parent / "mp_rank_00_model_states.pt")
    (source / "latest").write_text("global_step1")
    said = refusal(capsys, source, tmp_path / "new", "--config", folder / "bert")
    assert "could run any code: not loaded" in said
    assert not witness.exists()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/model.safetensors", ".."])
def test_a_list_of_files_leads_nowhere_else(folder, tmp_path, capsys, name):
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"weight": name}}))
    said = refusal(capsys, source, tmp_path / "new", "--config", folder / "bert")
    assert "which is no name in its own folder" in said and "model.safetensors.index.json" in said


def test_neither_does_the_latest_of_zero(folder, tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"")
    (source / "latest").write_text("../x")
    said = refusal(capsys, source, tmp_path / "new", "--config", folder / "bert")
    assert "which is no name in its own folder" in said


def test_a_run_does_not_start_from_a_pickle_that_runs_code(folder, tmp_path):
    witness = tmp_path / "witness"
    shutil.copytree(folder / "bert", tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"weight": Evil(witness)}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model\.path: .* could run any code"):
        start(tmp_path / "model")
    assert not witness.exists()


def peft_folder(folder, path, **settings):
    """What PEFT's own save_pretrained leaves of a trained adapter on a classifier of three labels."""
    from peft import get_peft_config, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import onecurve.adapters.bottleneck  # noqa: F401  registers the bottleneck adapter

    base = AutoModelForSequenceClassification.from_pretrained(folder / "bert", num_labels=3)
    base.name_or_path = str(folder / "bert")
    model = get_peft_model(base, get_peft_config({"task_type": "SEQ_CLS", **settings}))
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.05)
    for _ in range(2):
        model(**tokenizer(TEXTS, padding=True, return_tensors="pt"), labels=torch.tensor([0, 2])).loss.backward()
        optimizer.step()
    model.save_pretrained(path)
    return compute(model, tokenizer)


def test_an_adapter_comes_in_merged(folder, tmp_path, capsys):
    expected = peft_folder(folder, tmp_path / "adapter", peft_type="LORA")
    assert "--merge" in refusal(capsys, tmp_path / "adapter", tmp_path / "new")
    with pytest.raises(ConfigError, match=r"is a PEFT adapter.*--merge"):
        start(tmp_path / "adapter")
    assert "--labels" in refusal(capsys, tmp_path / "adapter", tmp_path / "new", "--merge")
    assert convert(tmp_path / "adapter", tmp_path / "new", "--merge", "--labels", "up", "down", "flat") == 0
    torch.testing.assert_close(logits(tmp_path / "new"), expected, rtol=1e-4, atol=1e-5)
    started = compute(*start(tmp_path / "new", labels=("up", "down", "flat")))
    torch.testing.assert_close(started, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}, {"peft_type": "BOTTLENECK"}]
)
def test_an_adapter_that_is_no_change_of_weights_is_not_merged(folder, tmp_path, capsys, settings):
    peft_folder(folder, tmp_path / "adapter", **settings)
    said = refusal(capsys, tmp_path / "adapter", tmp_path / "new", "--merge", "--labels", "a", "b", "c")
    assert f"{settings['peft_type'].lower()} cannot be merged" in said


SAVE_STATE = """
import sys, torch
from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import deepspeed
model_path, stage, target = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if stage:
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
    plugin = DeepSpeedPlugin(hf_ds_config={"zero_optimization": zero, "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False})
    accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
else:
    accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
model = AutoModelForCausalLM.from_pretrained(model_path)
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
for i in range(2):
    ids = torch.arange(16).reshape(2, 8) + accelerator.process_index + i
    accelerator.backward(model(input_ids=ids, labels=ids).loss)
    optimizer.step()
    optimizer.zero_grad()
accelerator.save_state(target)
state = accelerator.get_state_dict(model)  # on every rank
if accelerator.is_main_process:
    deepspeed.unset_hf_deepspeed_config()
    plain = AutoModelForCausalLM.from_pretrained(model_path)
    plain.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    batch = AutoTokenizer.from_pretrained(model_path)(sys.argv[4:], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.save(plain.eval()(**batch).logits, target + ".pt")
accelerator.wait_for_everyone()
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_what_two_ranks_saved_becomes_a_plain_folder(folder, tmp_path, stage):
    script, target = tmp_path / "save.py", tmp_path / "state"
    script.write_text(SAVE_STATE)
    how = ["--use_deepspeed"] if stage else ["--multi_gpu"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [*command, *how, str(script), str(folder / "llama"), str(stage), str(target), *TEXTS],
        capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert any(target.rglob("*_optim_states.pt")) == bool(stage)
    assert convert(target, tmp_path / "new", "--config", folder / "llama") == 0
    expected = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(logits(tmp_path / "new", "AutoModelForCausalLM"), expected)
    assert not torch.allclose(logits(folder / "llama", "AutoModelForCausalLM"), expected, atol=1e-3)
