"""What is drawn is drawn on the CPU in float32, whatever device and dtype it is for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from onecurve.adapters import add_adapter
from onecurve.config import PeftSection, Recipe, TaskSection
from onecurve.machine.cpu_draws import DrawnOnCpu
from onecurve.model.drawing import draw, place
from onecurve.model.loading import load_model
from onecurve.model.pretrained import read_fit
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey


class Draws(TorchDispatchMode):
    """Where random numbers were drawn, and in what."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in operator.tags:
            self.seen |= {(t.device.type, t.dtype) for t in tree_leaves(out) if isinstance(t, torch.Tensor)}
        return out


def head(folder: Path, precision: str = "no", **sections: Any) -> dict[str, torch.Tensor]:
    """Load a classifier as a run does, and return what its new head starts from."""
    recipe = Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": "text_classification"},
            "model": {"path": str(folder), **sections.pop("model", {})},
            "data": {"train": "unused"},
            "peft": {"method": "lora"},
            "train": {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2, **sections},
        }
    )
    task = load_task(TaskSection(name="text_classification"))
    model = load_model(recipe, task, AutoConfig.from_pretrained(folder), Survey(["a", "b", "c"]), precision)
    return {name: p.detach() for name, p in model.named_parameters() if ".modules_to_save." in name}


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"model": {"quantization": "nf4"}}], ids=["bf16", "nf4"])
def test_a_head_for_a_base_of_another_dtype_is_the_same_rounded(tiny_llama: Path, options: dict[str, Any]) -> None:
    if "model" in options:
        pytest.importorskip("bitsandbytes", reason="needs the extra quant")
    exact, found = head(tiny_llama), head(tiny_llama, **options)
    assert [name for name in exact if "score" in name]
    half = torch.bfloat16 if "precision" in options else torch.float32
    for name, value in exact.items():
        assert value.std() > 0
        assert torch.equal(found[name], value.to(half).float()), name


def test_a_head_is_drawn_on_the_cpu_for_a_model_that_lies_elsewhere(tiny_llama: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_llama, num_labels=3)

    def from_pretrained(**options: Any) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(tiny_llama, config=config, **options)

    fit = read_fit(from_pretrained, str(tiny_llama))
    with Draws() as draws:
        values = draw(fit.skeleton, fit.new, seed=0)
    assert draws.seen == {("cpu", torch.float32)}
    assert {value.device.type for value in values.values()} == {"cpu"}
    elsewhere = from_pretrained(device_map="meta", dtype="bfloat16")
    place(elsewhere, values)
    assert elsewhere.score.weight.device.type == "meta"
    here = from_pretrained(dtype="bfloat16")
    place(here, values)
    assert torch.equal(here.score.weight, values["score.weight"].bfloat16())


def test_in_place_draws_factories_and_their_like_come_from_the_cpu_s_stream() -> None:
    def everything(device: str) -> list[torch.Tensor]:
        torch.manual_seed(3)
        linear = nn.Linear(3, 4, device=device)
        given = torch.zeros(2, 3, device=device)
        return [
            *linear.parameters(),
            nn.init.normal_(torch.empty(5, device=device)),
            torch.randn(5, device=device, dtype=torch.bfloat16),
            torch.rand_like(given),
            torch.randperm(7, device=device),
            torch.randint(9, (4,), device=device),
        ]

    plain, after = everything("cpu"), torch.get_rng_state()
    with Draws() as draws, DrawnOnCpu():
        same = everything("cpu")
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))
    assert {device for device, _ in draws.seen} == {"cpu"}
    with Draws() as draws, DrawnOnCpu():
        elsewhere = everything("meta")
    assert {device for device, _ in draws.seen} == {"cpu"}
    assert {tensor.device.type for tensor in elsewhere} == {"meta"}
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("method", ["adaption_prompt", "lora", "ia3", "vera", "prefix_tuning", "bottleneck"])
def test_an_adapter_is_drawn_on_the_cpu_for_a_base_that_lies_elsewhere(tiny_llama: Path, method: str) -> None:
    fields = {
        "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
        "prefix_tuning": {"num_virtual_tokens": 4},
        "vera": {"r": 8},
    }
    after = []
    for device in ("cpu", "meta"):
        base = AutoModelForCausalLM.from_pretrained(tiny_llama, device_map=device)
        torch.manual_seed(0)
        with Draws() as draws:
            section = PeftSection(method=method, **fields.get(method, {}))
            add_adapter(base, section, task_type="CAUSAL_LM", new_modules=[])
        assert {kind for kind, _ in draws.seen} == {"cpu"}
        after.append(torch.get_rng_state())
    assert torch.equal(*after), "as many numbers, for a base wherever it lies"


def test_a_model_drawn_whole_is_drawn_on_the_cpu(tiny_llama: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": "causal_lm"},
            "model": {"path": str(tiny_llama), "init": "random"},
            "data": {"train": "unused"},
            "train": {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2},
        }
    )
    with Draws() as draws:
        model = load_model(
            recipe, load_task(TaskSection(name="causal_lm")), AutoConfig.from_pretrained(tiny_llama), Survey(), "no"
        )
    assert draws.seen == {("cpu", torch.float32)}
    assert model.new_weights == "all weights, drawn at random: model.init"
