"""What is wrong with the machines a run is about to use: a kind of check a file."""
