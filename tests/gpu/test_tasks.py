"""Every task on a GPU: the CPU's curve in float32, and near it in bf16."""

import pytest

from onecurve.tasks import task_names
from tests.gpu.devices import GPU
from tests.launching import train
from tests.parity.test_strategies_draw_one_curve import recipes  # noqa: F401  a fixture

NO_DROPOUT = ["--regularization.dropout", "0"]
"""A GPU draws other numbers than a CPU from the same seed."""
TOLERANCE = {"no": 1e-4, "bf16": 3e-2}
STEPS = {"no": 6, "bf16": 3}


@pytest.fixture(scope="module")
def on_cpu(recipes, tmp_path_factory):  # noqa: F811
    """Each task's losses on a CPU, computed once."""
    seen = {}

    def losses(task):
        if task not in seen:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("CUDA_VISIBLE_DEVICES", "")
                ended = train(recipes[task], tmp_path_factory.mktemp("cpu"), "python", *NO_DROPOUT)
            seen[task] = [step["loss"] for step in ended.events("train")]
        return seen[task]

    return losses


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("task", task_names())
def test_a_task_draws_the_curve_of_a_cpu(device, task, on_cpu, recipes, tmp_path, capsys):  # noqa: F811
    theirs = on_cpu(task)
    for precision, steps in STEPS.items():
        words = [*NO_DROPOUT, "--train.mixed_precision", precision]
        ended = train(recipes[task], tmp_path / precision, "python", *words)
        ours = [step["loss"] for step in ended.events("train")]
        scale = max(map(abs, theirs))  # a loss of grpo's is near zero where all answers are rewarded alike
        apart = max(abs(a - b) / scale for a, b in zip(ours[:steps], theirs, strict=False))
        with capsys.disabled():
            print(f"\n{task}, {precision}: largest relative difference over {steps} steps {apart:.1e}")
        assert apart < TOLERANCE[precision]
