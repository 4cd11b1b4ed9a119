"""Losses: cross-entropy, whole and in chunks, and next-token prediction."""
