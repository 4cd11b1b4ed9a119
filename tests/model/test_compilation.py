"""Compiled layers: the gradients of those that are not, from a bounded number of graphs."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from onecurve.adapters import add_adapter
from onecurve.config import PeftSection, Recipe
from onecurve.errors import ConfigError, LaunchError, TrainingError
from onecurve.model import compilation
from onecurve.model.activations import keep_activations
from onecurve.model.compilation import check_compilation, compile_layers
from onecurve.model.packing import Packing
from onecurve.strategies import check_strategy

SLOW = pytest.mark.slow
LORA = PeftSection(method="lora", r=4, lora_dropout=0.1, target_modules="all-linear")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
RECIPE = {
    "output_dir": "unused",
    "task": {"name": "causal_lm"},
    "model": {"path": "unused"},
    "data": {"train": "unused"},
    "train": {"max_steps": 1, "compile": True},
}


@pytest.fixture(autouse=True)
def own_graphs():
    """No graph or setting of another test's."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch):
    """Have graphs traced and guarded as ever, but run by torch itself: no compiler, so seconds instead of minutes."""

    def run_by_torch(call, dynamic, options):
        return compile_with(call, dynamic=dynamic, backend="aot_eager")

    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", run_by_torch)


def llama(kind=LlamaForCausalLM, what="keep", peft=None, packed=False, **sizes):
    torch.manual_seed(0)
    base = kind(LlamaConfig(vocab_size=61, num_key_value_heads=2, attention_dropout=0.1, **SIZES | sizes))
    base.enable_input_require_grads = lambda: None  # as `load_model` does
    keep_activations(base, what)
    torch.manual_seed(1)
    model = add_adapter(base, peft, task_type="CAUSAL_LM", new_modules=[])
    if packed:
        Packing(base)
    return model


def bert(what="keep", peft=None, packed=False):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=61, **SIZES))
    keep_activations(model, what)
    if packed:
        Packing(model)
    return model


def batch(lengths):
    longest = max(lengths)
    mask = torch.tensor([[1] * length + [0] * (longest - length) for length in lengths])
    torch.manual_seed(2)
    return {"input_ids": torch.randint(1, 61, mask.shape) * mask, "attention_mask": mask}


LENGTHS = [
    *([n, n + 3, 2 * n] for n in (5, 11, 17, 40)),
    *([n] * n for n in (2, 4, 32)),  # as many texts as tokens: a symbol too few would be seen
    *([n, 7] for n in (8, 16, 64, 9)),
    *([n] for n in (3, 33, 64, 90)),
]


def passes(model, all_lengths):
    """Train on and score batches; return each one's logits, and the gradients of the last."""
    found = []
    for lengths in all_lengths:
        inputs = batch(lengths)
        model.eval()
        with torch.no_grad():
            found.append(model(**inputs).logits)
        model.train().zero_grad()
        torch.manual_seed(3)
        found.append(model(**inputs).logits)
        found[-1].square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [logits.detach() for logits in found], gradients


def largest_difference(ours, theirs):
    """Of logits, and of gradients, each relative to the largest."""
    (logits, gradients), (their_logits, their_gradients) = ours, theirs
    assert gradients.keys() == their_gradients.keys()
    assert max(float(g.abs().max()) for g in gradients.values()) > 1e-3
    pairs = [*zip(logits, their_logits, strict=True)]
    norm = max(float(g.norm()) for g in gradients.values())
    return (
        max(float((one - other).norm() / one.norm()) for one, other in pairs),
        max(float((gradients[name] - their_gradients[name]).norm()) / norm for name in gradients),
    )


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_another_length_is_no_other_graph_and_too_many_graphs_end_the_run(traced, monkeypatch):
    monkeypatch.setattr(compilation, "_GRAPHS", 1)
    sizes = {"num_hidden_layers": 2}
    whole, model = llama(**sizes).train(), llama(**sizes).train()
    compile_layers(model)
    for count, length in ((2, 5), (3, 17), (4, 4), (2, 64)):
        inputs, logits = batch([length] * count), []
        for one in (whole, model):
            torch.manual_seed(3)
            logits.append(one(**inputs).logits)
        assert torch.allclose(*logits, rtol=1e-5, atol=1e-6)
    assert graphs() == 1
    with pytest.raises(TrainingError, match="more than 1 graphs"):  # and not what torch does: go on uncompiled
        model(**batch([9, 4]))


@SLOW
@pytest.mark.parametrize(
    ("build", "most"),
    [
        pytest.param(llama, 6, id="training and scoring, one text and several, with a mask and without"),
        pytest.param(partial(llama, peft=LORA), 12, id="lora, whose first layer has inputs without gradients"),
        pytest.param(partial(llama, kind=LlamaForSequenceClassification), 6, id="a decoder that classifies"),
        pytest.param(bert, 8, id="bert"),
        pytest.param(partial(llama, what="recompute"), 8, id="recomputed"),
        pytest.param(partial(llama, packed=True), 16, id="packed, where attention is between two graphs"),
    ],
)
def test_many_shapes_are_few_graphs_that_compute_the_same(traced, build, most):
    whole, model = build(), build()
    compile_layers(model)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in whole.named_parameters()]
    apart = largest_difference(passes(whole, LENGTHS), passes(model, LENGTHS))
    first = graphs()
    assert max(apart) < 1e-5 and 2 <= first <= most, (apart, first)
    passes(model, [[n, n + 1, 2] for n in (6, 13, 21, 77)])
    assert graphs() == first


@SLOW
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("build", [llama, bert])
def test_what_a_compiler_made_of_them_computes_the_same_with_dropout(build, packed):
    whole, model = build(packed=packed), build(packed=packed)
    compile_layers(model)
    torch.manual_seed(4)
    apart = largest_difference(passes(whole, LENGTHS[::2]), passes(model, LENGTHS[::2]))
    print(f"logits and gradients apart by {apart}, {graphs()} graphs")
    assert max(apart) < 1e-5 and 2 <= graphs() <= 16


@SLOW
def test_what_is_recomputed_is_not_kept():
    def kept(model):
        stored = {}

        def note(tensor):
            stored[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model.train().base_model(**batch([64] * 4), use_cache=False).last_hidden_state.sum().backward()
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(t.untyped_storage().nbytes() for place, t in stored.items() if place not in parameters)

    taken = {}
    for what in ("keep", "recompute"):
        model = llama(what=what)
        compile_layers(model)
        taken[what] = kept(model)
    print(taken)
    assert taken["recompute"] < 0.3 * taken["keep"]


# What is refused


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"train": {"activations": "selective"}}, "selective"),
        ({"train": {"activations": "offload"}}, "offload"),
        ({"train": {"activations": "recompute", "packing": "auto"}}, r"train\.packing"),
        ({"peft": {"method": "lora"}, "model": {"quantization": "nf4"}}, "nf4"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(sections, said):
    merged = {name: RECIPE.get(name, {}) | section for name, section in sections.items()}
    check_compilation(Recipe.model_validate(RECIPE))
    with pytest.raises(ConfigError, match=said) as refused:
        check_compilation(Recipe.model_validate(RECIPE | merged))
    assert refused.value.where == "train.compile"


def test_a_machine_without_a_compiler_or_headers_is_told_what_to_install(monkeypatch, tmp_path):
    recipe = Recipe.model_validate(RECIPE)
    with monkeypatch.context() as without:
        without.setattr(compilation, "get_path", lambda _: str(tmp_path))
        with pytest.raises(LaunchError, match=r"train\.compile: .*python3-dev"):
            check_compilation(recipe)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"train\.compile: .*Install g\+\+"):
        check_compilation(recipe)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_3_is_refused(stage, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.delenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", raising=False)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
    recipe = Recipe.model_validate(RECIPE)
    if stage < 3:
        return check_strategy(recipe)
    with pytest.raises(ConfigError, match=r"train\.compile: .*ZeRO-3"):
        check_strategy(recipe)


def test_layers_that_nobody_names_are_refused():
    class Model(torch.nn.Linear):
        config = LlamaConfig()

    with pytest.raises(ConfigError, match=r"train\.compile: .*llama repeat"):
        compile_layers(Model(1, 1))
