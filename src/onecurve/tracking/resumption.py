"""Lets trackers continue an existing run when a launch resumes it."""

import os
from typing import Any


def continuing(trackers: list[str], project: str, run_id: str) -> dict[str, dict[str, Any]]:
    """Return what each tracker is opened with, by its name; nothing for those that only know their folder.

    Args:
        trackers: Accelerate's names.
        project: As the recipe calls it.
        run_id: The same in every launch of a run: 32 hexadecimal digits.
    """
    options: dict[str, dict[str, Any]] = {
        "comet_ml": {"experiment_key": run_id},
        "swanlab": {"id": run_id, "resume": "allow"},
        "trackio": {"name": run_id, "resume": "allow"},
        "wandb": {"id": run_id, "resume": "allow"},
    }
    if "mlflow" in trackers:
        options["mlflow"] = _mlflow(os.environ.get("MLFLOW_EXPERIMENT_NAME", project), run_id)
    return {name: options[name] for name in trackers if name in options}


def _mlflow(experiment: str, run_id: str) -> dict[str, Any]:
    """Find by its tag the run that an earlier launch began: MLflow's server gives out the ids itself."""
    import mlflow

    found: Any = mlflow.search_runs(
        experiment_names=[experiment],
        filter_string=f"tags.`onecurve.run_id` = '{run_id}'",
        output_format="list",
    )
    return {"run_id": found[0].info.run_id} if found else {"tags": {"onecurve.run_id": run_id}}
