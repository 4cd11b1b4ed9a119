"""The recipe: what a run is, read once, checked before anything heavy loads."""

from onecurve.config.explain import explain
from onecurve.config.manual import manual
from onecurve.config.reading import Sources, load_recipe
from onecurve.config.schema import (
    DataSection,
    EvalSection,
    ModelSection,
    OptimSection,
    PeftSection,
    Recipe,
    TaskSection,
    TrackingSection,
    TrainSection,
)
from onecurve.config.suggest import nearest
from onecurve.config.writing import dump_recipe

__all__ = [
    "DataSection",
    "EvalSection",
    "ModelSection",
    "OptimSection",
    "PeftSection",
    "Recipe",
    "Sources",
    "TaskSection",
    "TrackingSection",
    "TrainSection",
    "dump_recipe",
    "explain",
    "load_recipe",
    "manual",
    "nearest",
]
