"""What the batch scripts run: resources, ranks, and what becomes of the job."""
