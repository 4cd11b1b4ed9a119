"""From every layout to every layout: a run that goes on elsewhere draws its curve, and in the same place to the bit."""

import shutil
from dataclasses import dataclass

import pytest

from tests.resume.curves import curve, largest_differences, partings

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FULL: list[str] = []
# Final norms are trained whole beside the adapter, so that a group without weight decay is there too
LORA = ["--peft.method", "lora", "--peft.lora_dropout", "0.1", "--optim.max_grad_norm", "0.05"]
METHODS = {
    "causal_lm": {"full": FULL, "lora": [*LORA, "--peft.modules_to_save", "[norm]"]},
    "sft": {"full": FULL, "lora": [*LORA, "--peft.modules_to_save", "[norm]"]},
    "text_classification": {"full": FULL, "lora": LORA},
}


@dataclass(frozen=True)
class Layout:
    how: str
    num_processes: int
    stop_after: int
    """Where runs in this layout are interrupted."""

    def __str__(self) -> str:
        return f"{self.how} x{self.num_processes}"


# An epoch has four steps
LAYOUTS = [
    Layout("python", 1, 3),
    Layout("ddp", 2, 3),
    Layout("zero1", 2, 5),
    Layout("zero2", 2, 4),
    Layout("zero3", 2, 3),
    Layout("ddp", 4, 4),
    Layout("zero3", 4, 3),
]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("task", sorted(METHODS))
def test_from_everywhere_to_everywhere(recipes, forks, tmp_path, record_property, task, method):
    recipe, overrides = recipes[task], METHODS[task][method]

    def run(layout, folder, *more):
        return forks.train(recipe, folder, layout.how, *overrides, *more, num_processes=layout.num_processes)

    wholes = {layout: run(layout, tmp_path / f"whole {layout}") for layout in LAYOUTS}
    one = wholes[LAYOUTS[0]]
    limit = 0.05 if overrides else 0.1
    assert all(norm > limit for _, _, _, norm in curve(one)), "clipping must be active"
    assert len({loss for _, _, loss, _ in curve(one)}) == 8, "nothing trained"

    largest, problems = (0.0, 0.0), []
    for source in LAYOUTS:
        start = run(source, tmp_path / f"from {source}", "--train.stop_after", str(source.stop_after))
        assert start.status["status"] == "stopped"
        for target in LAYOUTS:
            folder = tmp_path / "cell"
            shutil.copytree(start.output_dir, folder)
            resumed = run(target, folder)
            same = source is target
            assert not [*folder.glob("*.incomplete")]
            assert [event["step"] for event in resumed.events("resume")] == [source.stop_after]
            problems += [
                f"{source} -> {target}: {parting}"
                for parting in partings(wholes[target] if same else one, resumed, same)
            ]
            largest = tuple(map(max, largest, largest_differences(one, resumed)))
            shutil.rmtree(folder)
    record_property("largest relative difference of a loss", largest[0])
    record_property("largest relative difference of a gradient norm", largest[1])
    assert not problems, "\n".join(problems)
