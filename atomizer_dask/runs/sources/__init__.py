"""The source of the electrons of a run, and the record of their outcomes."""
