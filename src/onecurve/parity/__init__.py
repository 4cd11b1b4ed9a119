"""Compares one recipe in every launch form that fits on this machine with one process."""
