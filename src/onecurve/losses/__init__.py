"""Losses: cross-entropy, whole and in chunks, next-token prediction, and numbers in float32."""
