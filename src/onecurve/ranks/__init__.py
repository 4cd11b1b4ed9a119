"""What each rank is doing, and what becomes of a run when one is lost or hangs."""
