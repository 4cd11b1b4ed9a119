"""A user's mistakes through train.py itself: exit code 2, one message, no weights loaded, nothing written over."""

import importlib.util
import json
import shutil

import pytest

from onecurve.run.lifecycle import execute
from tests.launching import ROOT, launch, write_recipe
from tests.tiny_models import build_tiny_bert, build_tiny_llama

GOOD = [{"text": "profit rises", "label": "up"}, {"text": "profit falls", "label": "down"}] * 4


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"bert": build_tiny_bert(folder / "bert"), "llama": build_tiny_llama(folder / "llama", chat_template=None)}


@pytest.fixture
def run(tmp_path, models, monkeypatch, capsys):
    """Call train.py's main as its command line does; loading weights is recorded."""
    monkeypatch.chdir(tmp_path)
    module = importlib.util.spec_from_file_location("train", ROOT / "train.py")
    train = importlib.util.module_from_spec(module)
    module.loader.exec_module(train)
    loaded = []
    import transformers.modeling_utils

    original = transformers.modeling_utils.PreTrainedModel.from_pretrained.__func__

    def watched(cls, *args, **options):
        if options.get("device_map") != "meta":  # which reads names and shapes
            loaded.append(args)
        return original(cls, *args, **options)

    monkeypatch.setattr(transformers.modeling_utils.PreTrainedModel, "from_pretrained", classmethod(watched))

    def call(*overrides, task=None, peft=None, **data):
        recipe = write_recipe(
            tmp_path / "recipe.yaml",
            output_dir=str(tmp_path / "run"),
            task=task or {"name": "text_classification"},
            model={"path": str(models["llama" if task else "bert"])},
            data={"train": "train.jsonl", "cache_dir": str(tmp_path / "cache"), **data},
            train={"max_steps": 2, "global_batch_size": 4, "micro_batch_size": 2},
            **({"peft": peft} if peft else {}),
        )
        code = execute(train.main, [str(recipe), *overrides])
        return code, capsys.readouterr().err.strip(), loaded

    return call


def write(name, rows):
    with open(name, "w") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


MISTAKES = {
    "unknown key": (["--train.lrr", "1"], {}, GOOD, "Unknown setting 'train.lrr'. Did you mean 'optim.lr'?"),
    "unknown section": (["--trian.max_steps", "1"], {}, GOOD, "Unknown setting 'trian'. Did you mean 'train'?"),
    "unknown task setting": (["--task.label", "x"], {}, GOOD, "Did you mean 'task.labels'?"),
    "unknown task": (["--task.name", "text_clasification"], {}, GOOD, "Did you mean 'text_classification'?"),
    "unknown optimizer setting": (["--optim.beta3", "0.9"], {}, GOOD, "Did you mean 'optim.beta2'"),
    "unknown adapter": (["--peft.method", "lorra"], {}, GOOD, "'lora'"),
    "unknown adapter field": (["--peft.method", "lora", "--peft.rr", "8"], {}, GOOD, "Did you mean 'peft.r'?"),
    "adapter on random weights": (
        ["--peft.method", "lora", "--model.init", "random"],
        {},
        GOOD,
        "model.init: an adapter on weights drawn at random could not be loaded again",
    ),
    "wrong type": (["--optim.lr", "fast"], {}, GOOD, "optim.lr: must be a number; got 'fast'."),
    "impossible value": (["--optim.lr", "-1"], {}, GOOD, "optim.lr: must be greater than 0; got -1."),
    "batch not a multiple": (["--train.micro_batch_size", "3"], {}, GOOD, "(4) must be a multiple of"),
    "budget of tokens below an example": (
        ["--train.micro_batch_size", "null", "--train.micro_batch_tokens", "2"],
        {},
        GOOD,
        "train.micro_batch_tokens: is 2, and the longest example, number",
    ),
    "model not there": (["--model.path", "./no/model"], {}, GOOD, "model.path: no such folder: './no/model'."),
    "model nowhere": (["--model.path", "nosuch/model"], {}, GOOD, "model.path: there is no folder 'nosuch/model' in"),
    "file not there": ([], {"train": "nowhere.jsonl"}, GOOD, "nowhere.jsonl"),
    "empty split": ([], {}, [], "train.jsonl"),
    "empty dev split": ([], {"eval": "empty.jsonl"}, GOOD, "empty.jsonl"),
    "missing column": ([], {}, [{"sentence": "x", "label": "up"}], "data.columns"),
    "unknown column in the map": ([], {"columns": {"txt": "text"}}, GOOD, "'text'"),
    "broken JSON": ([], {}, [*GOOD, '{"text": '], "train.jsonl, line 9"),
    "null field": ([], {}, [*GOOD, {"text": None, "label": "up"}], "train.jsonl, line 9"),
    "wrong type of field": ([], {}, [*GOOD, {"text": 3, "label": "up"}], "train.jsonl, line 9"),
    "empty text": ([], {}, [*GOOD, {"text": "  ", "label": "up"}], "train.jsonl, line 9"),
    "label never seen": ([], {"eval": "other.jsonl"}, GOOD, "sideways"),
    "one label only": ([], {}, GOOD[:1], "label"),
    "too long": ([], {"max_length": 4}, GOOD, "data.on_long"),
    "longer than the model": ([], {"max_length": 10**6}, GOOD, "data.max_length: must be at most 256"),
    "unknown encoding": ([], {"encoding": "utf-9"}, GOOD, "utf-9"),
    "half precision trained": (["--model.dtype", "bfloat16"], {}, GOOD, "model.dtype"),
    "checkpoint asked for": (
        ["--train.resume", "some/checkpoint"],
        {},
        GOOD,
        "'some/checkpoint' is not a complete checkpoint",
    ),
    "metric without its split": (["--eval.best_metric", "accuracy"], {}, GOOD, "set data.eval"),
    "misspelt metric": (
        ["--eval.best_metric", "f1_macro"],
        {"eval": "train.jsonl"},
        GOOD,
        "eval.best_metric: no metric 'f1_macro'; the metrics of this task are loss, accuracy, macro_f1, matthews. "
        "Did you mean 'macro_f1'?",
    ),
    "metric of another problem": (
        ["--task.problem_type", "regression", "--eval.best_metric", "macro_f1"],
        {"eval": "train.jsonl"},
        GOOD,
        "eval.best_metric: no metric 'macro_f1'; the metrics of this task are loss, pearson, spearman, mse, mae.",
    ),
    "attention that does not exist": (["--model.attn_implementation", "sdpaa"], {}, GOOD, "no attention 'sdpaa'"),
    "attention that needs a package": (
        ["--model.attn_implementation", "org/kernel"],
        {},
        GOOD,
        "model.attn_implementation: org/kernel needs kernels. Install: pip install kernels",
    ),
    "encoding of other bytes": ([], {"encoding": "utf-16"}, GOOD, "cannot be read as utf-16"),
    "no room beside virtual tokens": (
        ["--peft.method", "prefix_tuning", "--peft.num_virtual_tokens", "999"],
        {},
        GOOD,
        "peft.num_virtual_tokens: peft's 999 virtual tokens leave no room",
    ),
    "a folder that is not there": (["--model.path", "models/bret"], {}, GOOD, "there is no folder 'models/bret' in"),
    "a setting that no file reads": ([], {"header": False}, GOOD, "data.header: has no effect"),
    "a tracker that is not installed": (["--tracking.trackers", "aim"], {}, GOOD, "tracking.trackers: aim needs aim"),
    "another schedule's key": (["--optim.decay_steps", "5"], {}, GOOD, "optim.decay_steps"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_one_message_before_any_weights_load(run, tmp_path, mistake):
    overrides, data, rows, said = MISTAKES[mistake]
    write("train.jsonl", rows)
    write("empty.jsonl", [])
    write("other.jsonl", [{"text": "profit drifts", "label": "sideways"}])
    code, message, loaded = run(*overrides, **data)
    assert code == 2
    assert said in message
    assert message.startswith("train.py: ")
    assert "Traceback" not in message
    assert loaded == []
    assert not (tmp_path / "run").exists()


def test_a_model_that_would_be_drawn_in_part_is_refused_before_its_weights_load(run, tmp_path, models):
    write("train.jsonl", GOOD)
    shutil.copytree(models["bert"], tmp_path / "edited")
    config = json.loads((tmp_path / "edited/config.json").read_text())
    config["vocab_size"] += 1
    (tmp_path / "edited/config.json").write_text(json.dumps(config))
    code, message, loaded = run("--model.path", "./edited")
    assert (code, loaded) == (2, [])
    line = message.splitlines()[-1]  # after transformers' own report, which train.py's process hushes
    assert line.startswith("train.py: model.path: the weights of './edited' are not those of the BertForSequence")
    assert f"bert.embeddings.word_embeddings.weight [{config['vocab_size'] - 1}, 64]" in line
    assert not (tmp_path / "run").exists()


def test_targets_that_the_model_does_not_have_are_refused_before_its_weights_load(run, tmp_path):
    write("train.jsonl", GOOD)
    code, message, loaded = run("--peft.method", "lora", "--peft.target_modules", "[q_proj, v_proj]")
    assert (code, loaded) == (2, [])
    said = "train.py: peft.target_modules: no module of BertForSequenceClassification is called q_proj, v_proj."
    assert message.splitlines()[-1].startswith(said)
    assert not (tmp_path / "run").exists()


HEADS = {"name": "multi_task", "heads": {name: {"name": "text_classification"} for name in ("topic", "mood")}}
OF_HEADS = {
    "a set without labels for the head": (
        "topics/mood/macro_f1",
        {"eval": {"both": "train.jsonl", "topics": "topics.jsonl"}},
        "eval.best_metric: 'topics/mood/macro_f1' would have no value: no example of data.eval.topics has anything to "
        "score for mood. Name that of a set which has some (both), or another metric.",
    ),
    "a split without labels for the head": (
        "mood/loss",
        {"eval": "topics.jsonl"},
        "eval.best_metric: 'mood/loss' would have no value: no example of data.eval has anything to score for mood.",
    ),
    "a dev set named as a head": (
        None,
        {"eval": {"topic": "topics.jsonl"}},
        "data.eval: 'topic/loss' is a metric of this task, and one of a set of this name. Rename the set.",
    ),
    "a test set named as a head": (
        None,
        {"test": {"mood": "train.jsonl"}},
        "data.test: 'mood/loss' is a metric of this task, and one of a set of this name. Rename the set.",
    ),
}


@pytest.mark.parametrize("mistake", OF_HEADS)
def test_scores_of_heads_that_nothing_can_have_are_refused_before_any_weights_load(run, tmp_path, mistake):
    metric, data, said = OF_HEADS[mistake]
    rows = [
        {"text": "profit rises", "topic": "up", "mood": "good"},
        {"text": "it falls", "topic": "down", "mood": "bad"},
    ]
    write("train.jsonl", rows * 4)
    write("topics.jsonl", [{key: row[key] for key in ("text", "topic")} for row in rows])
    code, message, loaded = run(
        *(["--eval.best_metric", metric, "--eval.every", "1"] if metric else []), task=HEADS, **data
    )
    assert (code, loaded) == (2, [])
    assert said in message
    assert not (tmp_path / "run").exists()


def test_the_guard_on_loading_weights_sees_them_load(run):
    write("train.jsonl", GOOD)
    code, message, loaded = run("--data.on_long", "truncate")
    assert (code, message.count("Traceback")) == (0, 0), message
    assert loaded


def test_an_earlier_run_is_not_written_over(run, tmp_path):
    write("train.jsonl", GOOD)
    assert run()[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run()[0] == 0, "the same run again has nothing to do"
    code, message, _ = run("--optim.lr", "0.5")
    assert code == 2
    assert "holds a finished run with another optim.lr (" in message and ", now 0.5)." in message
    code, message, _ = run("--train.resume", "never", "--train.lrr", "1")
    assert code == 2
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run("--train.resume", "never")[0] == 0


def test_messages_rows_need_a_chat_template(run):
    write("train.jsonl", [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    code, message, loaded = run(task={"name": "sft"})
    assert (code, loaded) == (2, [])
    assert "model.chat_template" in message


@pytest.mark.distributed
def test_of_two_ranks_one_speaks(tmp_path, models):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        output_dir="unused",
        task={"name": "text_classification"},
        model={"path": str(models["bert"])},
        data={"train": str(tmp_path / "nowhere.jsonl")},
        train={"max_steps": 2},
    )
    ended = launch(recipe, tmp_path / "run", "ddp")
    assert ended.exit_code != 0
    assert (ended.stdout + ended.stderr).count("train.py: ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("key", "value"),
    [("gradient_clipping", 0.7), ("train_batch_size", 7), ("optimizer", {"type": "Adam"}), ("bf16", {"enabled": True})],
)
def test_a_deepspeed_file_that_contradicts_the_recipe_is_refused(run, tmp_path, monkeypatch, key, value):
    write("train.jsonl", GOOD)
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, key: value}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "ds.json"))
    code, message, _ = run()
    assert code == 2
    assert f"'{key}' is" in message


def test_a_launcher_that_starts_one_process_for_two_is_refused(tmp_path, models):
    # distributed_type MULTI_CPU without mpirun: Accelerate starts one process and says nothing
    write(tmp_path / "train.jsonl", GOOD)
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        output_dir="unused",
        task={"name": "text_classification"},
        model={"path": str(models["bert"])},
        data={"train": str(tmp_path / "train.jsonl"), "cache_dir": str(tmp_path / "cache")},
        train={"max_steps": 2},
    )
    config = tmp_path / "multi_cpu.yaml"
    config.write_text("distributed_type: MULTI_CPU\nnum_machines: 1\nnum_processes: 2\nuse_cpu: true\n")
    ended = launch(recipe, tmp_path / "run", config)
    assert ended.exit_code != 0
    assert "accelerate launch started one process instead of several" in ended.stderr
    assert not (tmp_path / "run").exists()
