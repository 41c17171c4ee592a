"""Files of a store: where they are, how they are written, who may write."""
