"""One map: where its electrons come from, what became of them, and its frames."""
