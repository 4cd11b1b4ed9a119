"""Evaluation: scores of whole splits, the best step by them, and predictions of single examples."""

from onecurve.evaluation.annotation import annotated
from onecurve.evaluation.best import Best
from onecurve.evaluation.predictions import write_predictions
from onecurve.evaluation.scores import Evaluator

__all__ = ["Best", "Evaluator", "annotated", "write_predictions"]
