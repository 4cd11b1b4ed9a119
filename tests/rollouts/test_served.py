"""Completions that a server draws: with the adapter of the moment, scored by the model itself; a failure costs none."""

import json
from http.client import IncompleteRead, InvalidURL
from io import BytesIO
from time import sleep
from types import SimpleNamespace
from urllib.error import HTTPError, URLError

import pytest
import torch

from onecurve.errors import ConfigError
from onecurve.machine.vllm import ServerError, VllmServer
from onecurve.preflight import preflight, read
from tests.launching import write_recipe
from tests.tiny_models import build_tiny_llama
from tests.vllm_server import serving

REWARDS = "def length(completions):\n    return [-abs(len(text) - 9) / 10 for text in completions]\n"
STEPS, LORA = 4, {"method": "lora", "target_modules": "all-linear", "r": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny_llama(tmp_path_factory.mktemp("served") / "llama", initializer_range=0.1)


@pytest.fixture
def server(model):
    with serving(model) as found:
        yield found


@pytest.fixture
def recipe(tmp_path, model, server):
    rows = [{"prompt": f"question {number}"} for number in range(6)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(REWARDS)
    return write_recipe(
        tmp_path / "recipe.yaml",
        output_dir=str(tmp_path / "unused"),
        seed=3,
        task={
            "name": "grpo",
            "rewards": ["mine.py:length"],
            "completions": 4,
            "max_completion_length": 6,
            "server": server.url,
        },
        model={"path": str(model)},
        peft=LORA,
        data={
            "train": str(tmp_path / "train.jsonl"),
            "eval": str(tmp_path / "train.jsonl"),
            "cache_dir": str(tmp_path),
        },
        optim={"lr": 5e-2},
        train={"max_steps": STEPS, "global_batch_size": 8, "micro_batch_size": 4},
        eval={"every": 2},
        checkpoint={"every": None},
    )


def records(run, step):
    lines = (run.output_dir / f"rollouts/step-{step:08d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("how", ["python", "ddp", "zero3"])
def test_the_adapter_of_the_moment_draws_and_the_model_itself_says_how_likely(
    how, recipe, server, model, forks, tmp_path
):
    kept = {}
    load = server.load

    def loading(name, folder):
        load(name, folder)
        kept[name] = server.adapters[name]

    server.load = loading
    words = ["--task.temperature", "0.8"]
    run = forks.start(recipe, tmp_path / "run", how, *words, variables={"VLLM_API_KEY": "secret"}).wait()
    assert run.exit_code == 0, run.stderr
    assert len(run.events("train")) == STEPS and len({step["grad_norm"] for step in run.events("train")}) == STEPS
    assert not server.adapters and not (run.output_dir / "served").exists(), "what was lent is given back"
    assert len(server.loaded) == STEPS + STEPS // 2, "of each generation and evaluation"
    assert {one["authorization"] for one in server.asked} == {"Bearer secret"}
    drawn = [one for one in server.asked if one["temperature"] == 0.8]
    assert len(drawn) == STEPS * 8 and len({one["seed"] for one in drawn}) == len(drawn)
    assert sum(one["temperature"] == 0 for one in server.asked) == 6 * STEPS // 2
    prompts = {tuple(one["prompt"]) for one in drawn}
    adapters = [kept[name] for name in server.loaded if any(one["model"] == name for one in drawn)]
    assert len(adapters) == STEPS and len(prompts) == 6
    for number, adapter in enumerate(adapters, 1):
        own = [one for one in drawn if one["model"] == server.loaded[[*kept.values()].index(adapter)]]
        for line in records(run, number):
            matching = [one["prompt"] for one in own if server.drawn(adapter, one)["token_ids"] == line["ids"]]
            assert matching, "not what the adapter of this step draws"
            ids = torch.tensor([[*matching[0], *line["ids"]]])
            with torch.no_grad():
                logps = (adapter(input_ids=ids).logits[0] / 0.8).log_softmax(-1)
            size = len(line["ids"])
            told = logps[-size - 1 : -1].gather(1, ids[0, -size:, None])[:, 0].tolist()
            assert line["logps"] == pytest.approx(told, abs=2e-5)
            assert line["entropy"] == pytest.approx(-sum(told) / size, abs=2e-5)
            assert line["ended"] == (line["ids"][-1] in own[0]["stop_token_ids"])
    replayed = ["--task.replay", str(run.output_dir), "--task.server", "null", "--task.temperature", "0.8"]
    again = forks.train(recipe, tmp_path / "again", "python", *replayed)
    for ours, theirs in zip(run.events("train"), again.events("train"), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=2e-6, abs=1e-8)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("how", ["python", "ddp"])
def test_a_server_that_fails_costs_no_step(how, recipe, server, forks, tmp_path):
    for after in (3, 3 + 8 + 8 + 6 + 3):  # amid step 1, and then amid step 3
        server.refuses_after = after
        ended = forks.launch(recipe, tmp_path / "run", how)
        assert ended.exit_code == 2 and "Traceback" not in ended.stderr
        assert "task.server: " in ended.stderr and "EngineCore encountered an issue" in ended.stderr
        assert not server.adapters
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()
    server.refuses_after = None
    run = forks.train(recipe, tmp_path / "run", how)
    assert [event["step"] for event in run.events("train")] == [1, 2, 3, 4]
    assert len({*server.loaded}) == len(server.loaded)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_server_of_another_model_is_found_out(recipe, forks, tmp_path):
    with serving(build_tiny_llama(tmp_path / "other", initializer_range=0.5)) as other:
        ended = forks.launch(recipe, tmp_path / "run", "ddp", "--task.server", other.url)
    assert ended.exit_code == 2 and "it serves another model" in ended.stderr and "Traceback" not in ended.stderr


def test_the_server_is_asked_before_anything_heavy(recipe, server, monkeypatch):
    assert preflight([str(recipe)]).task.server == server.url
    monkeypatch.setattr("onecurve.machine.vllm._PAUSE_SECONDS", 60)
    for address in ("http://127.0.0.1:9", "http://127.0.0.1:80x0"):
        with pytest.raises(ConfigError, match="cannot be reached") as refused:
            preflight([str(recipe), "--task.server", address])
        assert refused.value.where == "task.server"
    assert read([str(recipe), "--task.server", "http://127.0.0.1:9"]).task.server, "staged where no server is"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task.server", "node7:8000"], "must begin with http"),
        (["--task.server", "http://node7:8000/v1/"], "without /v1"),
        (["--peft.layer_replication", "[[0, 1]]"], "peft.layer_replication is set"),
        (["--peft", "null"], "there is no adapter"),
        (["--peft.method", "ia3", "--peft.r", "null"], "peft.method is ia3"),
        (["--peft.modules_to_save", "[lm_head]"], "peft.modules_to_save is set"),
        (["--peft.use_dora", "true"], "peft.use_dora is set"),
        (["--peft.alpha_pattern", "{q_proj: 3}"], "peft.alpha_pattern is set"),
        (["--peft.init_lora_weights", "pissa"], "takes weights out of the base"),
        (["--model.add_tokens", "[<x>]"], "rows of the embeddings"),
    ],
)
def test_what_cannot_travel_to_a_server_is_refused(recipe, words, said):
    with pytest.raises(ConfigError, match=said) as refused:
        read([str(recipe), *words])
    assert refused.value.where == "task.server"


def test_each_text_is_asked_for_by_itself_with_every_option_named(server, monkeypatch, tmp_path, model):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=2, target_modules=["q_proj"])
    ).save_pretrained(tmp_path / "a")
    one = VllmServer(server.url + "/")
    one.load_adapter("a", str(tmp_path / "a"))
    assert one.models() == ["base", "a"]
    options = {"max_new_tokens": 5, "do_sample": True, "temperature": 1.0, "top_k": None, "top_p": None}
    prompts, seeds = [[5, 6], [5, 6], [9, 3, 4]], [1, 2, 2**64 - 1]
    drawn = one.draw("a", prompts, seeds, [2, *range(100, 160)], options)
    assert drawn[0] != drawn[1]
    assert drawn == one.draw("a", prompts, seeds, [2, *range(100, 160)], options)
    assert all(len(text.ids) == 5 or text.ended for text in drawn)
    asked = server.asked[0]
    assert asked["ignore_eos"] is True and asked["skip_special_tokens"] is False
    assert (asked["top_k"], asked["top_p"], asked["min_p"], asked["repetition_penalty"]) == (-1, 1.0, 0.0, 1.0)
    greedy = one.draw("a", prompts[:1], [3], [2], {**options, "do_sample": False, "top_k": 5})
    assert server.asked[-1]["temperature"] == 0 and server.asked[-1]["top_k"] == -1 and len(greedy[0].ids) == 5
    one.unload_adapter("a")
    assert one.models() == ["base"]


ASKED = {"stop_token_ids": [2, 7], "max_tokens": 3}
TOLD = {"logprobs": {"token_logprobs": [-1.5, -2.5]}}


@pytest.mark.parametrize(
    ("choice", "drawn"),
    [
        ({"token_ids": [5, 7], "finish_reason": "stop", **TOLD}, ([5, 7], True, [-1.5, -2.5])),
        (
            {"token_ids": [5, 6, 8], "finish_reason": "length", "logprobs": {"token_logprobs": [-1, -2, -3]}},
            ([5, 6, 8], False, [-1, -2, -3]),
        ),
        ({"text": "x", "finish_reason": "stop"}, "no token_ids"),
        ({"token_ids": [5, 6], "finish_reason": "stop", **TOLD}, "neither with an end token"),
        ({"token_ids": [], "finish_reason": "stop"}, "a text of 0 tokens"),
        ({"token_ids": [5, 6], "finish_reason": "length", **TOLD}, "--max-model-len"),
        ({"token_ids": [5, 6, 8], "finish_reason": "abort"}, "ended with abort"),
        ({"token_ids": [5, 7], "finish_reason": "stop"}, "how likely each token is"),
        ({"token_ids": [5, 7], "finish_reason": "stop", "logprobs": {"token_logprobs": [None, -1]}}, "how likely"),
    ],
)
def test_a_text_is_whole_or_refused(choice, drawn, monkeypatch):
    server = VllmServer("http://nowhere")
    monkeypatch.setattr(VllmServer, "_ask", lambda *_, **__: {"choices": [choice]})
    if isinstance(drawn, tuple):
        assert server._complete(ASKED) == drawn
    else:
        with pytest.raises(ServerError, match=drawn):
            server._complete(ASKED)


def test_what_is_busy_is_asked_again_and_what_is_slow_or_refuses_is_not(monkeypatch):
    answers, asked = [], []

    def opened(request, timeout):
        asked.append(request.full_url)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def refusal(code, told):
        return HTTPError("u", code, "m", None, BytesIO(told))

    monkeypatch.setattr("onecurve.machine.vllm._OPENER", SimpleNamespace(open=opened))
    monkeypatch.setattr("onecurve.machine.vllm._PAUSE_SECONDS", 0.001)
    server = VllmServer("http://nowhere", patience=5)
    answers[:] = [refusal(503, b"busy"), IncompleteRead(b""), BytesIO(b'{"data": [{"id": "m"}, 7]}')]
    assert server.models() == ["m"] and len(asked) == 3
    answers[:] = [BytesIO(b'{"data": null}')]
    assert server.models() == []
    for first, said in (
        (TimeoutError(), "within 5 seconds"),
        (URLError(TimeoutError()), "within 5 seconds"),
        (refusal(400, b"no such rank"), "answers v1/load_lora_adapter with 400: no such rank"),
        (refusal(400, b"has already been loaded"), "already been loaded"),
        (InvalidURL("nonnumeric port: '80x0'"), "nonnumeric port"),
    ):
        answers[:], asked[:] = [first], []
        with pytest.raises(ServerError, match=said):
            server.load_adapter("a", "/a")
        assert len(asked) == 1
    answers[:] = [ConnectionResetError(), refusal(400, b"The lora adapter 'a' has already been loaded")]
    server.load_adapter("a", "/a")  # whose answer was lost
    answers[:] = [refusal(400, b"has already been loaded")]
    server.load_adapter("a", "/a", again=True)
    answers[:] = [ConnectionRefusedError("refused")] * 9999
    with pytest.raises(ServerError, match="cannot be reached: refused"):
        VllmServer("http://nowhere", patience=0.05).models()


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("how", ["python", "ddp"])
def test_a_slow_server_is_no_hang_and_one_that_is_started_anew_is_lent_the_adapter_again(
    how, recipe, server, forks, tmp_path
):
    complete, slept = server.complete, []

    def slowly(body):
        if not slept:  # longer, in all, than train.hang_timeout
            slept.append(1)
            sleep(14)
        if len(server.asked) == 5 and len(server.loaded) == 1:
            server.adapters.clear()
            server.loaded.clear()
        return complete(body)

    server.complete = slowly
    run = forks.train(recipe, tmp_path / "run", how, "--train.hang_timeout", "30", "--train.max_steps", "1")
    assert [event["step"] for event in run.events("train")] == [1]
    assert run.events("train")[0]["sampling/sampling_logp_difference/mean"] < 1e-4
    assert not server.adapters


@pytest.mark.slow
@pytest.mark.distributed
def test_a_replay_asks_reward_models_where_it_evaluates(recipe, model, forks, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).save_pretrained(tmp_path / "judge")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "judge")
    judged = ["--task.server", "null", "--task.rewards", f"[{tmp_path}/judge, mine.py:length]"]
    run = forks.train(recipe, tmp_path / "run", "ddp", *judged)
    again = forks.train(recipe, tmp_path / "again", "python", *judged, "--task.replay", str(run.output_dir))
    for ours, theirs in zip(run.events("train"), again.events("train"), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=2e-6, abs=1e-8)
        assert ours["rewards/judge/mean"] == theirs["rewards/judge/mean"]
    assert again.events("eval")[-1]["rewards/judge/mean"] == pytest.approx(
        run.events("eval")[-1]["rewards/judge/mean"], abs=1e-3
    )
