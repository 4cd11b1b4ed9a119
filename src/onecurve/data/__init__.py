"""From files to micro-batches: sources, formats, cache of encoded examples, batch plan, loader."""

from onecurve.data.encoding import Data, Split, load_data
from onecurve.data.loader import Loader
from onecurve.data.plan import BatchPlan, Step, plan_run, plan_scoring

__all__ = ["BatchPlan", "Data", "Loader", "Split", "Step", "load_data", "plan_run", "plan_scoring"]
