"""Raw logs: described in YAML, read in bounded memory, registered, downloaded, simulated."""
