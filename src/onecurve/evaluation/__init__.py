"""Evaluation: scores of whole splits, the best step by them, and predictions of single examples."""

from collections.abc import Mapping

from onecurve.config import Recipe
from onecurve.data.loader import Loader
from onecurve.data.splits import Data
from onecurve.evaluation.annotation import annotated
from onecurve.evaluation.best import Best
from onecurve.evaluation.dev import Dev
from onecurve.evaluation.predictions import write_predictions
from onecurve.evaluation.scorable import scorable
from onecurve.evaluation.scores import Evaluator
from onecurve.evaluation.writing import settle_prompts
from onecurve.strategies.average import Average
from onecurve.strategies.base import Strategy
from onecurve.tasks.base import Task

__all__ = ["Best", "Dev", "Evaluator", "annotated", "scorable", "scoring", "write_predictions"]


def scoring(
    strategy: Strategy, recipe: Recipe, task: Task, data: Data, loaders: Mapping[str, Loader]
) -> tuple[Evaluator, Best]:
    """Return what scores a run's splits and what keeps its best step, and find out how prompts may be batched."""
    settle_prompts(strategy, loaders)
    average = Average(strategy, recipe.regularization)
    best = Best(task, recipe.eval, strategy, data.eval, average, recipe.num_best)
    return Evaluator(strategy, recipe, data.survey), best
