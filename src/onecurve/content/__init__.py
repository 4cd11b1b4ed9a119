"""What rows hold, whatever file they come from: label names, conversations."""
