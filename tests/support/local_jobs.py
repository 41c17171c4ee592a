"""The cluster of dask-jobqueue whose jobs are processes of this machine."""

from dask_jobqueue.local import LocalCluster


def cluster_of_jobs(folder, **options):
    """Return a cluster whose jobs are a worker of a thread each, with their files in a folder."""
    return LocalCluster(
        cores=1,
        memory="1GB",
        processes=1,
        local_directory=str(folder),
        log_directory=str(folder),
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
        **options,
    )
