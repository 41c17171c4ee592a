"""Child processes, in which electrons may crash and harm nothing else."""
