"""What the stores beside this file were written with, by version 0.1.0 before its modules moved."""

import functools
from dataclasses import dataclass
from enum import Enum

from atomizer_dask import Electron, atom


class Shape(Enum):
    ROUND = "round"
    FLAT = "flat"


@dataclass(frozen=True)
class Body:
    shape: Shape
    size: float


@functools.lru_cache
def volume(size):
    return size**3


class Measure:
    def __init__(self, body):
        self.body = body

    @functools.cached_property
    def volume(self):
        return volume(self.body.size)


@atom
def measured(context, body, factor=2.0):
    if body.shape is Shape.FLAT and body.size > 3:
        raise ValueError(f"too flat: {body.size}")
    return {
        "volume": factor * Measure(body).volume,
        "measure": Measure(body),
        "drawn": context.rng.random(),
        "request": Electron("some.atom", {"x": 1}),
    }
