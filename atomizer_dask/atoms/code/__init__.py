"""Which code an atom consists of, and whether it has changed."""
