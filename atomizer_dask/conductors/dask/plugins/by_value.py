"""Sending plugins to the scheduler with their code: it may not have this package."""

from __future__ import annotations

import sys
from typing import Any

import cloudpickle
from distributed import SchedulerPlugin

from atomizer_dask.conductors.dask import messages
from atomizer_dask.conductors.dask.cluster import internals
from atomizer_dask.conductors.dask.plugins import scheduler_plugin
from atomizer_dask.conductors.dask.plugins.scheduler_plugin import BatchTasksPlugin


class PluginByValue(SchedulerPlugin):  # type: ignore[misc]
    """A `BatchTasksPlugin` with its code: the scheduler may not have this package."""

    name = BatchTasksPlugin.name
    idempotent = True
    modules: tuple[str, ...] = ()  # that the plugin's own imports from this package

    def plugin(self) -> SchedulerPlugin:
        """Return the plugin that the scheduler runs."""
        return BatchTasksPlugin()

    def __reduce__(self) -> Any:
        plugin = self.plugin()
        modules = type(plugin).__module__, *self.modules
        return cloudpickle.loads, (packed_by_value(plugin, *modules),)


def packed_by_value(value: Any, *names: str) -> bytes:
    """Return a pickled object, with the code of some modules and of what all plugins use."""
    shared = __name__, scheduler_plugin.__name__, internals.__name__, messages.__name__
    modules = [sys.modules[name] for name in dict.fromkeys((*shared, *names))]
    for each in modules:
        cloudpickle.register_pickle_by_value(each)
    try:
        data: bytes = cloudpickle.dumps(value)
    finally:
        for each in modules:
            cloudpickle.unregister_pickle_by_value(each)
    return data
