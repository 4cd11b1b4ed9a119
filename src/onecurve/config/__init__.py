"""The recipe: what a run is, read once, checked before anything heavy loads."""

from onecurve.config.curve import curve_settings
from onecurve.config.explain import explain
from onecurve.config.manual import manual
from onecurve.config.reading import Sources, load_recipe, read_yaml
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
from onecurve.config.suggest import closest, nearest
from onecurve.config.writing import dump_recipe, resolve

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
    "closest",
    "curve_settings",
    "dump_recipe",
    "explain",
    "load_recipe",
    "manual",
    "nearest",
    "read_yaml",
    "resolve",
]
