"""Pictures of a run, and its outputs as an xarray Dataset."""
