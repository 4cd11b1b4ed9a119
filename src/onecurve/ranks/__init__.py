"""Monitors the ranks and ends the run when one is lost or hangs."""
