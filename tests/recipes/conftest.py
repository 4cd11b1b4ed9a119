"""The systems under recipes/ are scripts beside each other, which import each other by name."""

import sys

from tests.launching import ROOT

sys.path += [str(ROOT / "recipes" / name) for name in ("news_monitor", "recommender")]
