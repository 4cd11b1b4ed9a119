"""The model card: training data, recipe and metrics."""

from dataclasses import dataclass
from typing import Any

from onecurve.config import Recipe, path_of


@dataclass(frozen=True)
class TrainedOn:
    """What the card says of the training data."""

    labels: list[str]
    num_examples: int
    fingerprint: str


def reasons(scores: dict[str, Any]) -> str:
    """List how many rows of a split have no score, by reason."""
    counts = ((why.replace("_", " "), count) for why, count in scores["left_out"].items() if why != "of_rows")
    return ", ".join(f"{count:,} {why}" for why, count in counts)


def _named(train: Any) -> str:
    """Say what `data.train` names."""
    if isinstance(train, dict):
        return "; ".join(f"{name}: {_named(path_of(entry))}" for name, entry in train.items())
    return train if isinstance(train, str) else ", ".join(train)


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
    left_out = [
        f"Not scored: of the {values['left_out']['of_rows']:,} rows of {split}, {reasons(values)}."
        for split, values in scores.items()
        if "left_out" in values
    ]
    averaged = [str(one) for values in scores.values() for one in values.get("averaged_steps", ())]
    whose = f"the mean of the weights of steps {', '.join(averaged)}" if averaged else f"the weights of step {step}"
    trained_on = _named(recipe.data.train)
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
            f"{whose}. Trained with onecurve.",
            "",
            labels + f"Data: {trained_on}, {data.num_examples:,} examples (fingerprint `{data.fingerprint}`).",
            "",
            "| split | metric | value |",
            "|---|---|--:|",
            *numbers,
            "",
            *(line for text in left_out for line in (text, "")),
            use,
            "## Recipe",
            "",
            "```yaml",
            config.rstrip(),
            "```",
            "",
        ]
    )
