"""What trackers are told of a run: its name, its recipe, and which run a launch continues."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Yield a recipe's values by dotted key, as all trackers take them: lists and null are JSON."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else json.dumps(value)


def continuing(trackers: list[str], project: str, run_id: str, name: str) -> dict[str, dict[str, Any]]:
    """Return what each tracker is opened with, by its name; nothing for those that only know their folder.

    Args:
        trackers: Accelerate's names.
        project: As the recipe calls it.
        run_id: The same in every launch of a run: 32 hexadecimal digits.
        name: The run's, for people.
    """
    options: dict[str, dict[str, Any]] = {
        "clearml": {"task_name": name},
        "comet_ml": {"experiment_key": run_id},
        "swanlab": {"id": run_id, "resume": "allow", "experiment_name": name},
        "trackio": {"name": f"{name}-{run_id[:8]}", "resume": "allow"},  # which goes on with the run of that name
        "wandb": {"id": run_id, "resume": "allow", "name": name},
    }
    if "mlflow" in trackers:
        options["mlflow"] = _mlflow(os.environ.get("MLFLOW_EXPERIMENT_NAME", project), run_id, name)
    return {name: options[name] for name in trackers if name in options}


def _mlflow(experiment: str, run_id: str, name: str) -> dict[str, Any]:
    """Find by its tag the run that an earlier launch began: MLflow's server gives out the ids itself."""
    import mlflow

    found: Any = mlflow.search_runs(
        experiment_names=[experiment],
        filter_string=f"tags.`onecurve.run_id` = '{run_id}'",
        output_format="list",
    )
    return {"run_id": found[0].info.run_id} if found else {"run_name": name, "tags": {"onecurve.run_id": run_id}}
