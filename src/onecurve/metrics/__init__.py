"""The metrics: one file a kind of prediction, each an `evaluate.Metric` of our own that needs no network."""
