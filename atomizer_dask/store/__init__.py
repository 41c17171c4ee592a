"""The folder in which a run survives."""
