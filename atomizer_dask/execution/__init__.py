"""A batch, and how it is executed: in this process, or in a child of it."""
