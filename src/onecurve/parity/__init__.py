"""One recipe under every launch form this machine can hold, compared with one process."""
