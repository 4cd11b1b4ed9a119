"""The metrics, one file a kind of prediction: an `evaluate.Metric` of our own that needs no network, or a formula."""
