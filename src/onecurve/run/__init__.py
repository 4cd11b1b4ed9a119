"""One run: how it begins and ends, and the directory that it writes."""
