"""Asking a trained model: its folder loaded, rows read without labels, answers in the task's own words."""
