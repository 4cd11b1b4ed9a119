"""From files to micro-batches: sources, formats, cache of encoded examples, batch plan, loader."""

from onecurve.data.encoding import load_data
from onecurve.data.loader import Loader
from onecurve.data.plan import BatchPlan, Step, plan_run, plan_scoring
from onecurve.data.splits import Data, Split

__all__ = ["BatchPlan", "Data", "Loader", "Split", "Step", "load_data", "plan_run", "plan_scoring"]
