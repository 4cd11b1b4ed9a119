"""The recipe: the configuration of a run, read once and checked before any heavy import."""

from onecurve.config.curve import curve_settings
from onecurve.config.effects import BY_SPLIT, beyond_the_end, check_effects, default_of, refuse_without_effect
from onecurve.config.explain import explain
from onecurve.config.manual import manual
from onecurve.config.reading import Sources, load_recipe, read_yaml
from onecurve.config.recipe import Recipe
from onecurve.config.sections.data import DataSection
from onecurve.config.sections.evaluation import EvalSection
from onecurve.config.sections.model import ModelSection
from onecurve.config.sections.optim import OptimSection
from onecurve.config.sections.peft import PeftSection
from onecurve.config.sections.regularization import RegularizationSection
from onecurve.config.sections.sources import SHARDS, NamedSet, path_of, shards_folder, shards_folders, weights_of
from onecurve.config.sections.task import TaskSection
from onecurve.config.sections.tracking import TrackingSection
from onecurve.config.sections.train import TrainSection
from onecurve.config.suggest import closest, meant, nearest
from onecurve.config.writing import dump_recipe, resolve

__all__ = [
    "BY_SPLIT",
    "SHARDS",
    "DataSection",
    "EvalSection",
    "ModelSection",
    "NamedSet",
    "OptimSection",
    "PeftSection",
    "Recipe",
    "RegularizationSection",
    "Sources",
    "TaskSection",
    "TrackingSection",
    "TrainSection",
    "beyond_the_end",
    "check_effects",
    "closest",
    "curve_settings",
    "default_of",
    "dump_recipe",
    "explain",
    "load_recipe",
    "manual",
    "meant",
    "nearest",
    "path_of",
    "read_yaml",
    "refuse_without_effect",
    "resolve",
    "shards_folder",
    "shards_folders",
    "weights_of",
]
