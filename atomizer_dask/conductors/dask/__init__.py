"""The conductor that executes on a Dask cluster."""
