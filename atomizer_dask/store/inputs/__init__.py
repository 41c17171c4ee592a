"""The inputs of a run in its store: written, read, and extended by further sweeps."""
