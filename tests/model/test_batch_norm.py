"""Batch normalisation: frozen, another cut gives the same gradient; trained, its statistics follow the plan."""

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer, load
from onecurve.checkpoint.adapter_buffers import buffer_pieces
from onecurve.config import DataSection, TrainSection
from onecurve.data import BatchPlan, Loader
from onecurve.errors import ConfigError
from onecurve.model.batch_norm import check_adapted, settle_batch_norm, statistics_of
from onecurve.run.history import History
from onecurve.step import accumulate, train_step
from onecurve.strategies.plain import Plain
from onecurve.strategies.snapshot import Snapshot
from onecurve.tasks.text_classification import Task, TextClassificationSettings
from tests.data.byte_level import labelled, write_jsonl
from tests.data.byte_level import load as load_data
from tests.readings import padding


class Normalised(nn.Module):
    """Reads the bytes of a text, with two layers of batch normalisation."""

    def __init__(self, momentum=0.1):
        super().__init__()
        self.embed = nn.Embedding(512, 8)
        self.first, self.second = nn.BatchNorm1d(8, momentum=momentum), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 2)
        nn.init.normal_(self.first.running_mean)
        nn.init.uniform_(self.second.running_var, 0.5, 2)

    def forward(self, input_ids, attention_mask, **_):
        hidden = self.first(self.embed(input_ids).transpose(1, 2)).transpose(1, 2) * attention_mask[..., None]
        return SimpleNamespace(logits=self.head(self.second(hidden.sum(1))))


def model(what, momentum=0.1):
    torch.manual_seed(0)
    made = Normalised(momentum)
    settle_batch_norm(made, what)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch_norm")
    path = write_jsonl(folder / "train.jsonl", labelled(*("abcdefgh"[n % 8] * (2 + n) for n in range(16))))
    return load_data(DataSection(train=path, cache_dir=str(folder / "cache")), Task(TextClassificationSettings()))


def prepared(made, data, size):
    """Return a strategy, its loader and the first step, cut into micro-batches of a size."""
    strategy = Plain(Accelerator(cpu=True), "no", 0.0)
    strategy.prepare(made, torch.optim.SGD(made.parameters(), 0.1), 1)
    task = Task(TextClassificationSettings())
    task.survey([{"text": "a", "label": label} for label in ("a", "b")])
    plan = BatchPlan(data.train.num_items, seed=3, global_batch_size=8, micro_batch_size=size, max_steps=9)
    return strategy, Loader(data.train, task, padding(0), strategy.accelerator), plan.step(1)


def gradient(what, data, size):
    strategy, loader, step = prepared(model(what), data, size)
    accumulate(strategy, loader, step, seed=0)
    return torch.cat([p.grad.flatten() for p in strategy.unwrapped().parameters()])


def buffers(made):
    return {name: value.clone() for name, value in made.named_buffers()}


@pytest.mark.parametrize(("what", "same"), [("frozen", True), ("train", False)])
def test_another_cut_gives_the_same_gradient_where_frozen(data, what, same):
    whole = gradient(what, data, 8)
    apart = max(float((gradient(what, data, size) - whole).norm() / whole.norm()) for size in (2, 4))
    assert apart < 1e-5 if same else apart > 1e-2


def test_frozen_layers_keep_their_statistics_and_learn(data):
    made = model("frozen")
    before, weight = buffers(made), made.first.weight.clone()
    train_step(*prepared(made, data, 4), 0.1, 0, History(TrainSection()))
    assert not made.first.training and made.head.training
    assert all(torch.equal(value, before[name]) for name, value in buffers(made).items())
    assert not torch.equal(made.first.weight, weight)


def test_a_layer_without_statistics_cannot_be_frozen():
    layers = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ConfigError, match=r"model.batch_norm: 0 has no running statistics .* Set it to train"):
        settle_batch_norm(layers, "frozen")


@pytest.mark.parametrize("momentum", [0.1, None], ids=["moving", "cumulative"])
def test_trained_statistics_are_torch_s_own_over_the_step_s_micro_batches(data, momentum):
    made = model("train", momentum)
    strategy, loader, step = prepared(made, data, 2)
    plain = copy.deepcopy(made).train()
    for layer in (plain.first, plain.second):
        layer.track_running_stats = True
    accumulate(strategy, loader, step, seed=0)  # as the search for a size does: it moves nothing
    strategy.discard()
    assert all(torch.equal(value, dict(plain.named_buffers())[name]) for name, value in made.named_buffers())
    outcome = train_step(strategy, loader, step, 0.1, 0, History(TrainSection()))
    assert not outcome["fault"]
    for micro_batch in loader.micro_batches(step):
        plain(**{name: value for name, value in micro_batch.batch.items() if name != "labels"})
    wanted = dict(plain.named_buffers())
    for name, value in made.named_buffers():
        assert torch.allclose(value, wanted[name], rtol=1e-5, atol=1e-7), name
    assert int(made.first.num_batches_tracked) == 4


def test_a_step_that_is_not_made_moves_nothing(data):
    made = model("train")
    before = buffers(made)
    with torch.no_grad():
        made.head.weight.fill_(torch.inf)
    assert train_step(*prepared(made, data, 4), 0.1, 0, History(TrainSection()))["fault"] == "loss"
    assert all(torch.equal(value, before[name]) for name, value in made.named_buffers())


def test_statistics_do_not_depend_on_the_number_of_ranks():
    """Three micro-batches on one rank, and on two, of which the second makes a pass that does not count."""
    torch.manual_seed(2)
    inputs = [torch.randn(5, 3) * (1 + i) + i for i in range(3)]

    class Ranks:
        def __init__(self, others):
            self.others, self.num_processes = others, 1 + len(others)

        def gather(self, mine):
            return torch.cat([mine, *self.others])

    def rank(passes):
        layers = nn.Sequential(nn.BatchNorm1d(3))
        settle_batch_norm(layers, "train")
        statistics = statistics_of(layers)
        for number, counts in passes:
            with statistics.observed(counts):
                layers.train()(inputs[number])
        return layers[0], statistics

    alone, of_alone = rank([(0, True), (1, True), (2, True)])
    of_alone.move(Ranks([]), 3)
    first, of_first = rank([(0, True), (2, True)])
    _, of_second = rank([(1, True), (2, False)])
    of_first.move(Ranks([torch.stack(of_second.seen)]), 3)
    assert alone.running_mean.abs().max() > 0.1
    assert torch.equal(alone.running_mean, first.running_mean) and torch.equal(alone.running_var, first.running_var)
    _, of_idle = rank([(2, False)])  # a rank with nothing but a pass that does not count
    assert len(of_idle.seen) == 1


def test_checkpoints_and_the_best_weights_keep_the_statistics(data, tmp_path):
    made = model("train")
    strategy, loader, step = prepared(made, data, 4)
    train_step(strategy, loader, step, 0.1, 0, History(TrainSection()))
    snapshot, best = Snapshot(strategy), buffers(made)
    snapshot.take()
    windows = [*strategy.windows(once=True), *snapshot.windows()]
    assert {f"buffer/{name}" for name in best} <= {f"{w.key}/{w.name}" for w in windows}
    writer = Writer(tmp_path, Alone(), Retention())
    pieces = [TensorWindow(f"{w.key}/{w.name}", w.view, w.offset, w.numel, w.shape) for w in windows]
    writer.save(1, pieces, {}, last=True)
    assert [report.error for report in writer.wait()] == [""]
    train_step(strategy, loader, step, 0.1, 0, History(TrainSection()))
    assert not torch.equal(made.first.running_mean, best["first.running_mean"])
    snapshot.restore()
    assert all(torch.equal(value, best[name]) for name, value in made.named_buffers())

    resumed = model("train")
    again, *_ = prepared(resumed, data, 4)
    empty = Snapshot(again)
    empty.take()
    live = [*again.windows(), *empty.windows()]
    load(
        tmp_path / "step-00000001",
        [TensorWindow(f"{w.key}/{w.name}", w.view, w.offset, w.numel, w.shape) for w in live],
    )
    assert all(torch.equal(value, best[name]) for name, value in resumed.named_buffers())


def test_frozen_statistics_are_not_in_checkpoints(data):
    strategy, *_ = prepared(model("frozen"), data, 4)
    assert {w.key for w in strategy.windows()} == {"param"}


def test_layers_that_look_at_all_ranks_cannot_be_trained():
    with pytest.raises(ConfigError, match=r"model.batch_norm: 0 normalises by the micro-batches of all ranks"):
        settle_batch_norm(nn.Sequential(nn.SyncBatchNorm(3)), "train")
    settle_batch_norm(nn.Sequential(nn.SyncBatchNorm(3)), "frozen")


@pytest.mark.parametrize(("what", "said"), [("frozen", "2 layers are frozen with statistics that no"), ("train", "")])
def test_statistics_that_no_training_has_moved_are_told(what, said):
    made = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    settle_batch_norm(made, what)
    assert said in made.batch_norm_remark
    with torch.no_grad():
        made[1].running_mean.fill_(0.5)
    settle_batch_norm(made, what)
    assert said.replace("2", "1") in made.batch_norm_remark


def adapted(what, **more):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    settle_batch_norm(made, what)
    return get_peft_model(made, LoraConfig(target_modules=["0"], **more))


def test_an_adapter_cannot_move_the_statistics_of_its_base():
    with pytest.raises(ConfigError, match=r"statistics of 3, which the adapter's folder would not hold. .* peft.modul"):
        check_adapted(adapted("train", modules_to_save=["1"]))
    check_adapted(adapted("train", modules_to_save=["1", "3"]))
    check_adapted(adapted("frozen"))


@pytest.mark.parametrize("what", ["frozen", "train"])
def test_the_copies_that_an_adapter_trains_do_what_the_layers_do(what):
    made = adapted(what, modules_to_save=["1", "3"]).train()
    before, strategy = {name: b.clone() for name, b in made.named_buffers()}, Plain(Accelerator(cpu=True), "no", 0.0)
    strategy.prepare(made, torch.optim.SGD(made.parameters(), 0.1), 1)
    statistics, snapshot = statistics_of(made), Snapshot(strategy)
    snapshot.take()
    with statistics.observed(counts=True):
        made(torch.randn(5, 3))
    statistics.move(strategy.accelerator, 1)
    moved = [name for name, value in made.named_buffers() if not torch.equal(value, before[name])]
    copies = [name for name in before if ".modules_to_save.default." in name]
    assert len(copies) == 6 and moved == (copies if what == "train" else [])
    names = [piece.tensor for piece in buffer_pieces(made)] + [
        f"{window.key}/{window.name}" for window in strategy.windows() if window.key == "buffer"
    ]
    assert sorted(names) == sorted(f"buffer/{name}" for name in copies)
    snapshot.restore()
    assert all(torch.equal(value, before[name]) for name, value in made.named_buffers())


@pytest.mark.parametrize("what", ["frozen", "train"])
def test_the_gradient_of_a_single_example_is_right_behind_a_transposed_view(what):
    torch.manual_seed(0)
    made = nn.Sequential(nn.BatchNorm2d(6)).double()
    made[0].running_mean.normal_()
    settle_batch_norm(made, what)
    made.train()
    image, factors = torch.randn(1, 6, 4, 3, dtype=torch.double), torch.randn(1, 12, 6, dtype=torch.double)

    def loss(image):
        return (made(image).flatten(2).transpose(1, 2) * factors).sum()

    assert torch.autograd.gradcheck(loss, image.requires_grad_(), check_undefined_grad=False)
