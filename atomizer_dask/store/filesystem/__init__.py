"""Files of a store: where they are, how they are written, which process may write."""
