"""The cluster of dask-jobqueue whose jobs are processes of this machine."""

import signal

# Once it is imported, Ctrl-C would raise SystemExit in this process.
_handler = signal.getsignal(signal.SIGINT)
from dask_jobqueue.local import LocalCluster  # noqa: E402

signal.signal(signal.SIGINT, _handler)


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
