"""Interruptions and failures of a run, and how each is handled: one file per kind."""

from onecurve.faults.bad_steps import BadSteps
from onecurve.faults.blackbox import BlackBox
from onecurve.faults.micro_batch_search import fit
from onecurve.faults.out_of_memory import OutOfMemory
from onecurve.faults.stopping import Stopping

__all__ = ["BadSteps", "BlackBox", "OutOfMemory", "Stopping", "fit"]
