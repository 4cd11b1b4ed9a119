"""The model card: training data, recipe and metrics."""

from dataclasses import dataclass
from typing import Any

from onecurve.config import Recipe


@dataclass(frozen=True)
class TrainedOn:
    """What the card says of the training data."""

    labels: list[str]
    num_examples: int
    fingerprint: str


def model_card(
    recipe: Recipe, data: TrainedOn, config: str, step: int, scores: dict[str, dict[str, Any]], use: str
) -> str:
    """Return the README.md that lies beside the weights: data, metrics, how to load them (`use`), recipe."""
    numbers = [
        f"| {split} | {name} | {value:.4f} |"
        for split, values in scores.items()
        for name, value in values.items()
        if isinstance(value, (int, float))
    ]
    labels = f"Labels: {', '.join(data.labels)}.\n\n" if data.labels else ""
    head = ["---", "library_name: peft" if recipe.peft else "library_name: transformers"]
    return "\n".join(
        [
            *head,
            f"base_model: {recipe.model.path}",
            "tags: [onecurve]",
            "---",
            "",
            f"# {recipe.task.name} from {recipe.model.path}",
            "",
            f"{'Adapter (' + recipe.peft.method + ')' if recipe.peft else 'Fully fine-tuned'}, "
            f"the weights of step {step}. Trained with onecurve.",
            "",
            labels + f"Data: {recipe.data.train}, {data.num_examples:,} examples (fingerprint `{data.fingerprint}`).",
            "",
            "| split | metric | value |",
            "|---|---|--:|",
            *numbers,
            "",
            use,
            "## Recipe",
            "",
            "```yaml",
            config.rstrip(),
            "```",
            "",
        ]
    )
