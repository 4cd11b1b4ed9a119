"""What a loss is computed with: cross-entropy whole and in chunks, next-token prediction."""
