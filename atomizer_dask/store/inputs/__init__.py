"""The inputs of a run as its store keeps them, and other inputs beside them."""
