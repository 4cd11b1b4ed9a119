"""A mixture of four sources, scored on two sets: one curve under every strategy, and through any interruption."""

import json

import pytest

from tests.launching import write_recipe
from tests.resume.curves import TOLERANCE, partings

pytestmark = pytest.mark.distributed

STEPS = 8
MORE_MAIL = ["--data.train.mail.weight", "4"]
SIZES = {"news": 30, "tweets": 11, "mail": 5, "web": 17}
"""The five of `mail` come round several times, and more than once in a step."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_bert):
    """Dropout on, clipping active, uneven lengths, other columns and formats, steps that lie in two passes."""
    folder = tmp_path_factory.mktemp("mixture")
    for name, size in SIZES.items():
        rows = [(f"{name} headline {i} " * (1 + i % 4), ("up", "down")[i % 2]) for i in range(size)]
        csv = "body,mood\n" + "".join(f"{text},{label}\n" for text, label in rows)
        (folder / f"{name}.csv").write_text(csv)
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))

    def source(name, **more):
        columns = {"text": "body", "label": "mood"}
        csv = {"path": str(folder / f"{name}.csv"), "columns": columns, **more}
        return csv if name in ("tweets", "web") else {"path": str(folder / f"{name}.jsonl"), **more}

    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "text_classification"},
        model={"path": str(tiny_bert)},
        data={
            "train": {name: source(name, weight=weight) for name, weight in zip(SIZES, (5, 3, 3, 1), strict=True)},
            "eval": {"tweets": source("tweets"), "news": source("news", max_samples=9)},
            "cache_dir": str(folder / "cache"),
        },
        optim={"lr": 2e-3, "weight_decay": 0.1, "max_grad_norm": 0.1, "schedule": "cosine", "warmup_steps": 2},
        train={"max_steps": STEPS, "global_batch_size": 12, "micro_batch_size": 2},
        eval={"every": 2, "best_metric": "tweets/loss", "predictions": True},
    )


@pytest.fixture(scope="module")
def whole(recipe, forks, tmp_path_factory):
    """In one process, never interrupted."""
    run = forks.train(recipe, tmp_path_factory.mktemp("whole") / "run")
    assert len({step["loss"] for step in run.events("train")}) == STEPS, "nothing trained"
    last = run.events("train")[-1]
    told = last["num_samples_by_source"]
    assert sum(told.values()) == last["num_samples"] == 87  # the first pass over 63 rows ends with a step of 3
    assert all(7 * weight <= told[name] <= 8 * weight for name, weight in zip(SIZES, (5, 3, 3, 1), strict=True))
    return run


def test_sets_are_scored_apart_and_together_and_one_of_them_chooses_the_step(whole):
    scored = {event["step"]: event for event in whole.events("eval")}
    assert whole.events("end")[0]["step"] == min(scored, key=lambda step: scored[step]["tweets/loss"])
    best = scored[whole.events("end")[0]["step"]]
    lines = [json.loads(line) for line in (whole.output_dir / "predictions-dev.jsonl").read_text().splitlines()]
    losses = {name: [line["loss"] for line in lines if line["set"] == name] for name in ("tweets", "news")}
    assert [len(of_set) for of_set in losses.values()] == [11, 9]
    for name, of_set in losses.items():
        assert best[f"{name}/loss"] == pytest.approx(sum(of_set) / len(of_set), rel=1e-5)
        right = [line["label"] == line["reference"] for line in lines if line["set"] == name]
        assert best[f"{name}/accuracy"] == sum(right) / len(right)
    every = [*losses["tweets"], *losses["news"]]
    assert best["loss"] == pytest.approx(sum(every) / len(every), rel=1e-5)
    assert (
        f"| eval | tweets/macro_f1 | {best['tweets/macro_f1']:.4f} |"
        in (whole.output_dir / "model/README.md").read_text()
    )
    assert "mail      5 examples from 5 rows; weight 3, 25.0% of the draws, 4.35 passes" in whole.stdout


def test_other_weights_are_refused_unless_allowed_and_then_it_is_said_what_follows(recipe, forks, tmp_path, whole):
    forks.train(recipe, tmp_path, "python", "--train.stop_after", "3")
    refused = forks.launch(recipe, tmp_path, "python", *MORE_MAIL)
    assert refused.exit_code == 2
    was, now = ({"news": 5, "tweets": 3, "mail": mail, "web": 1} for mail in (3, 4))
    assert f"data.weights was {was} and is {now}" in refused.stderr
    assert "train.allow_changes to [data.weights]" in refused.stderr
    changed = forks.train(recipe, tmp_path, "python", *MORE_MAIL, "--train.allow_changes", "[data.weights]")
    first, second = changed.events("resume")[-1]["remarks"]
    assert first.endswith(
        "the run continues after 36 samples, in pass 2 over the data, of whose 63 examples it has seen 0"
    )
    assert second.startswith("each source goes on at the place that its share of all draws so far gives")
    assert next(partings(whole, changed)).startswith("other data or steps")


def test_a_metric_of_no_set_is_told_before_anything_is_loaded(recipe, forks, tmp_path):
    ended = forks.launch(recipe, tmp_path, "python", "--eval.best_metric", "twets/macro_f1")
    assert ended.exit_code == 2
    assert "no metric 'twets/macro_f1'; the metrics of this task are loss, accuracy" in ended.stderr
    assert "of one of the sets tweets, news: NAME/METRIC" in ended.stderr
    assert "Did you mean 'tweets/macro_f1'?" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", ["single", "ddp", "zero2", "zero3"])
def test_every_strategy_draws_the_curve_of_one_process(recipe, forks, tmp_path, whole, how):
    other = forks.train(recipe, tmp_path, how)
    assert not [*partings(whole, other)]
    for ours, theirs in zip(whole.events("eval"), other.events("eval"), strict=True):
        for name in ("loss", "tweets/loss", "news/loss"):
            assert theirs[name] == pytest.approx(ours[name], rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [["--train.group_by_length", "true"], ["--train.micro_batch_tokens", "200"]])
def test_another_cut_holds_the_same_samples(recipe, forks, tmp_path, whole, cut):
    other = forks.train(recipe, tmp_path, "ddp", *cut)
    digests = [[step["sample_digest"] for step in run.events("train")] for run in (whole, other)]
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_interrupted_after_every_step_it_is_the_uninterrupted_run_bit_for_bit(recipe, forks, tmp_path, whole):
    for stop in range(1, STEPS):
        forks.train(recipe, tmp_path, "python", "--train.stop_after", str(stop))
    assert not [*partings(whole, forks.train(recipe, tmp_path), exactly=True)]


@pytest.mark.slow
def test_it_moves_between_strategies_and_world_sizes(recipe, forks, tmp_path, whole):
    for how, ranks, stop in (("zero2", 2, 2), ("ddp", 3, 3), ("zero3", 2, 5), ("python", 1, STEPS)):
        run = forks.train(recipe, tmp_path, how, "--train.stop_after", str(stop), num_processes=ranks)
    run = forks.train(recipe, tmp_path) if run.status["status"] == "stopped" else run
    assert not [*partings(whole, run)]
