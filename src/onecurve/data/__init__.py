"""From files to micro-batches: sources, the cache of encoded examples, the batch plan, the loader."""

from onecurve.data.encoding import Data, Split, load_data
from onecurve.data.loader import Loader
from onecurve.data.plan import BatchPlan, Step, plan_run, plan_scoring

__all__ = ["BatchPlan", "Data", "Loader", "Split", "Step", "load_data", "plan_run", "plan_scoring"]
