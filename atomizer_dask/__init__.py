"""From a function and a table of inputs to one tidy DataFrame, massively parallel on Dask."""

import typing

from atomizer_dask.atomizer import Atomizer
from atomizer_dask.atoms.base import Atom
from atomizer_dask.atoms.context import Context
from atomizer_dask.atoms.decorator import atom
from atomizer_dask.conductor import Conductor
from atomizer_dask.conductors.dask.conductor import DaskConductor
from atomizer_dask.conductors.memory import MemoryConductor
from atomizer_dask.electron import Electron
from atomizer_dask.errors import (
    AtomizerError,
    ConductorError,
    ConfigurationError,
    ElectronError,
    InvalidPayloadError,
    InvalidSweepError,
    RegistrationError,
    StoreChangedError,
    StoreCorruptedError,
    StoreError,
    StoreHeldError,
    UnpicklableError,
    UnstorableError,
    WireError,
)
from atomizer_dask.events import Event, Stream
from atomizer_dask.properties import Properties
from atomizer_dask.registry import register
from atomizer_dask.runs.progress import Progress
from atomizer_dask.runs.run import Run
from atomizer_dask.sweeps.make import grid, zipped

if typing.TYPE_CHECKING:
    from atomizer_dask.conductors.amqp.conductor import AmqpConductor

__version__ = "0.1.0"

__all__ = [
    "AmqpConductor",
    "Atom",
    "Atomizer",
    "AtomizerError",
    "Conductor",
    "ConductorError",
    "ConfigurationError",
    "Context",
    "DaskConductor",
    "Electron",
    "ElectronError",
    "Event",
    "InvalidPayloadError",
    "InvalidSweepError",
    "MemoryConductor",
    "Progress",
    "Properties",
    "RegistrationError",
    "Run",
    "StoreChangedError",
    "StoreCorruptedError",
    "StoreError",
    "StoreHeldError",
    "Stream",
    "UnpicklableError",
    "UnstorableError",
    "WireError",
    "atom",
    "grid",
    "register",
    "zipped",
]


def __getattr__(name: str) -> typing.Any:
    # A twentieth of the time of the import is what only those need who have a broker.
    if name == "AmqpConductor":
        from atomizer_dask.conductors.amqp.conductor import AmqpConductor

        return AmqpConductor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
