"""The machine: processes, devices, cores, memory, locks, and what is installed on it."""
