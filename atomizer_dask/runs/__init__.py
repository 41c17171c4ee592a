"""One run: the source of its electrons, the record of their outcomes, and its frames."""
