"""The metrics, one file a kind of prediction: an `evaluate.Metric` of our own that needs no network, or a formula."""

NUMBERS = {
    "single_label_classification": ("accuracy", "macro_f1", "matthews"),
    "multi_label_classification": ("micro_f1", "macro_f1", "subset_accuracy"),
    "regression": ("pearson", "spearman", "mse", "mae"),
}
"""What each module's metric scores by one number, told without importing it: that takes a second and 40 MB."""
