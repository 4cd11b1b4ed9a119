"""Regularization: one file a cure for overfitting. They wrap what training computes; evaluation never sees them."""
