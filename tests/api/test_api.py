"""`from onecurve import train, predict`: what Python code and notebooks call."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import redirect_stdout
from io import StringIO

import pytest

import onecurve
from onecurve import predict, train
from onecurve.api import _scores
from onecurve.errors import TrainingError, UserError
from tests.launching import ROOT, environment
from tests.test_house import HEAVY, run_and_list_imports

ROWS = [{"text": f"headline {i}", "label": ("up", "down")[i % 2]} for i in range(32)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_bert):
    folder = tmp_path_factory.mktemp("api")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {
        "output_dir": folder / "run",
        "task": {"name": "text_classification"},
        "model": {"path": tiny_bert},
        "data": {
            **dict.fromkeys(("train", "eval", "test"), folder / "rows.jsonl"),
            "cache_dir": str(folder / "cache"),
            "columns": {"text": "text"},
        },
        "train": {"max_steps": 4, "global_batch_size": 8, "micro_batch_size": 4},
        "eval": {"every": 2, "best_metric": "accuracy"},
    }


@pytest.fixture(scope="module")
def printed():
    return StringIO()


@pytest.fixture(scope="module")
def trained(recipe, printed):
    with redirect_stdout(printed):
        return train(recipe, optim={"lr": 1e-3}, seed=3)


def test_importing_the_package_imports_nothing_heavy():
    code = "import onecurve; assert onecurve.train and onecurve.predict and onecurve.__version__"
    exit_code, imported, said = run_and_list_imports("-c", code)
    assert exit_code == 0, said
    assert not imported & {*HEAVY, "pydantic"}
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = onecurve.trian


def test_a_run_from_a_dict_says_where_it_is_how_it_ended_and_what_it_scored(trained, recipe):
    assert trained.output_dir == recipe["output_dir"]
    assert (trained.status["status"], trained.status["step"], trained.status["exit_code"]) == ("done", 4, 0)
    lines = [json.loads(line) for line in (trained.output_dir / "metrics.jsonl").read_text().splitlines()]
    (end,) = (line for line in lines if line["event"] == "end")
    (best,) = (line for line in lines if line["event"] == "eval" and line["step"] == end["step"])
    (test,) = (line for line in lines if line["event"] == "test")
    assert trained.scores["eval/accuracy"] == best["accuracy"]
    assert trained.scores["test/loss"] == test["loss"]
    assert "eval/step" not in trained.scores
    config = (trained.output_dir / "config.yaml").read_text()
    assert re.search(r"lr: 0\.001 +# command line", config)
    assert re.search(r"seed: 3 +# command line", config)


def test_what_it_prints_is_printed_here(trained, printed):
    lines = printed.getvalue().splitlines()
    assert any(line.startswith("step 4/4  loss ") for line in lines)
    assert lines[-1].startswith("model of step ") and lines[-1].endswith(f": {trained.output_dir / 'model'}")


def test_a_finished_run_is_returned_as_it_is(trained, recipe):
    assert train(recipe, optim={"lr": 1e-3}, seed=3) == trained


@pytest.mark.slow
def test_a_stopped_run_is_a_result_too(recipe, tmp_path):
    result = train(recipe, output_dir=tmp_path / "run", train={"stop_after": 1})
    assert (result.status["status"], result.status["step"], result.scores) == ("stopped", 1, {})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"optim": {"lrr": 1}}, "Unknown setting 'optim.lrr' of adamw. Did you mean 'optim.lr'?"),
        ({"train.max_stepss": 1}, "Unknown setting 'train.max_stepss'. Did you mean 'train.max_steps'?"),
        ({"task.name": "nowhere.py:Task"}, "task.name: there is no file 'nowhere.py'."),
        ({"launch": "zer2"}, "--launch: there is no launch file 'zer2'. Did you mean 'zero2'?"),
        ({"num_processes": 2}, "--num_processes: is 2"),
        ({"seed": object()}, "a recipe cannot hold <object"),
    ],
)
def test_a_mistake_is_a_user_error_with_the_message(recipe, tmp_path, arguments, said):
    with pytest.raises(UserError) as refused:
        train(recipe, **({"output_dir": str(tmp_path / "run")} | arguments))
    assert said in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_failed_training_is_a_training_error(recipe, tmp_path):
    with pytest.raises(TrainingError, match=r"not finite|nan|infinite"):
        train(recipe, output_dir=tmp_path / "run", optim={"lr": 1e30})
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 3


@pytest.mark.slow
def test_an_interrupt_saves_and_is_raised_and_the_run_goes_on(recipe, tmp_path, capsys):
    long = {"max_steps": 5000}
    metrics = tmp_path / "run" / "metrics.jsonl"

    def interrupt():
        while not (metrics.is_file() and metrics.read_text().count('"train"') > 5):
            pause.wait(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    pause = threading.Event()
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        train(recipe, output_dir=tmp_path / "run", train=long)
    thread.join()
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["exit_code"], status["reason"]) == ("stopped", 75, "SIGINT")
    assert f"stopped after step {status['step']} by SIGINT" in capsys.readouterr().out
    stopped = train(recipe, output_dir=tmp_path / "run", train=long | {"stop_after": status["step"] + 1})
    assert stopped.status["step"] == status["step"] + 1


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_from_python_without_a_main_guard(recipe, tmp_path):
    script = tmp_path / "script.py"
    settings = json.dumps(recipe, default=str)
    script.write_text(
        f"import json\nfrom onecurve import train\nrecipe = json.loads({settings!r})\n"
        f"result = train(recipe, launch='ddp', num_processes=2, output_dir={str(tmp_path / 'run')!r})\n"
        "print('ended', result.status['status'])\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "x 2 rank(s)" in done.stdout
    assert done.stdout.endswith("ended done\n")


def test_predict_labels_texts_and_rows_whatever_the_batch(trained):
    texts = [row["text"] for row in ROWS[:5]] + ["a much longer text about profit that rises and falls"]
    answers = predict(trained.output_dir / "model", texts)
    assert [set(answer) for answer in answers] == [{"label", "probability", "probabilities"}] * 6
    one_by_one = predict(trained.output_dir / "model", [{"text": text} for text in texts], batch_size=1)
    assert [answer["label"] for answer in one_by_one] == [answer["label"] for answer in answers]
    for one, many in zip(one_by_one, answers, strict=True):
        assert one["probability"] == pytest.approx(many["probability"], rel=1e-5)
    pair = predict(trained.output_dir / "model", [{"text": texts[0], "text_pair": texts[5]}])
    assert pair[0]["probability"] != answers[0]["probability"]


def test_a_loaded_model_is_asked_again_without_being_loaded(trained, monkeypatch):
    texts = [row["text"] for row in ROWS[:2]]
    expected = predict(trained.output_dir, texts)
    model = onecurve.load(trained.output_dir)
    monkeypatch.setattr("onecurve.model.trained.load_trained", None)
    assert model.predict(texts) == expected
    assert model.predict(iter(texts), batch_size=1)[1]["label"] == expected[1]["label"]


def test_predict_continues_texts(tiny_llama):
    (answer,) = predict(tiny_llama, ["the dog"], max_new_tokens=4, task="causal_lm")
    assert list(answer) == ["text"]


def test_predict_refuses_what_it_cannot_read(trained, tmp_path):
    with pytest.raises(UserError, match="is not a model folder"):
        predict(tmp_path, ["x"])
    with pytest.raises(UserError, match="is not a model folder"):
        onecurve.load(tmp_path)
    good, bad, wrong = predict(trained.output_dir / "model", ["x", {"txt": "x"}, 3])
    assert "label" in good and bad == {"error": "text is missing"}
    assert wrong == {"error": "must be a text or a map; got int"}


def test_the_dev_scores_of_averaged_steps_are_the_model_s(tmp_path):
    events = [
        {"event": "eval", "step": 2, "loss": 3.0},
        {"event": "eval", "step": 4, "loss": 4.0},
        {"event": "eval", "step": 6, "loss": 9.0},
        {"event": "average", "step": 4, "loss": 2.0, "averaged_steps": [2, 4]},
        {"event": "end", "step": 4},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert _scores(tmp_path / "metrics.jsonl") == {"eval/loss": 2.0, "eval/averaged_steps": [2, 4]}
