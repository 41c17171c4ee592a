"""One object for each thing that travels, in whichever process it arrives.

A class, a function, a module or a singleton of the user's own travels by value, so that workers
need no file of the user's. By value alone it would arrive as another object each time: `is` and
`isinstance` would be false between an atom and its inputs. So the process in which a thing was
made gives it a name, which travels along, and a process keeps what has arrived under that name.

What has arrived is kept apart by *space*. On a worker a space belongs to one version of an atom,
and of the user's own code among its inputs: two versions of one module live side by side, each
with classes and globals of its own. The space
``""`` is home: there a name leads back to the very object, or to what the module of that name
has today, as after a restart of the process.
"""

from __future__ import annotations

import builtins
import importlib
import io
import itertools
import os
import pickle
import secrets
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import resolve_name
from types import CodeType, FunctionType, ModuleType
from typing import Any

from atomizer_dask.atoms.code.source_lines import SourceLines, with_lines

HOME = ""
_PACKAGE = __name__.partition(".")[0]
_ARRIVED = "__arrived__"  # in globals that have arrived: their name

Place = tuple[str, str] | None  # module and qualified name, where these lead to a thing

# By module of 0.1.0 that pickles in its stores refer to: names in it, and the modules they are in.
_RENAMED: dict[str, dict[str, str]] = {
    "atom": {
        "FunctionAtom": "atoms.definition",
        "ClassAtom": "atoms.definition",
    },
    "pickling": {
        "Exempt": "atoms.pickling",
        **dict.fromkeys(
            (
                "_cached_anew", "_cached_property_anew", "_enum_made_by_itself", "_fill_enum",
                "_fill_instance", "_global_generator",
            ),
            "atoms.reductions",
        ),
    },
    "spaces": dict.fromkeys(
        (
            "arrive", "arrive_function", "arrive_module", "complete", "fill_function",
            "fill_module", "recall",
        ),
        "atoms.namespaces",
    ),
    "sweep": {},
    "context": {},
    "registry": {},
    "progress": {},
    "run": {},
    "conductors.amqp": {},
    "conductors.base": {},
    "conductors.dask": {},
    "conductors.memory": {},
}  # fmt: skip


class _Names:
    """The names of things that travel, by identity and without keeping the things alive."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(8)
        self._count = itertools.count()
        self._names: dict[int, tuple[Callable[[], Any], str]] = {}
        self._things: dict[str, Callable[[], Any]] = {}

    def renew(self) -> None:
        """Give names as another process from now on; names already given stay."""
        self._process = secrets.token_hex(8)

    def of(self, thing: Any) -> str:
        """Return the name of a thing, a new one where it has none."""
        known = self._names.get(id(thing))
        if known is not None and known[0]() is thing:
            return known[1]
        name = f"{self._process}-{next(self._count):x}"
        self.give(thing, name, is_home=True)
        return name

    def of_globals(self, scope: Mapping[str, Any]) -> str:
        """Return the name of the globals of functions, which allow no weak reference."""
        return str(scope.get(_ARRIVED) or f"{self._process}-globals-{id(scope):x}")

    def give(self, thing: Any, name: str, *, is_home: bool) -> None:
        """Note the name of a thing; where it is at home, the name leads back to the thing."""
        key = id(thing)

        def forget(_: object) -> None:
            if key in self._names and self._names[key][0] is reference:
                del self._names[key]
            if self._things.get(name) is reference:
                del self._things[name]

        reference: Callable[[], Any]
        try:
            reference = weakref.ref(thing, forget)
        except TypeError:  # a bare object() as sentinel, of which there are few
            reference = lambda: thing  # noqa: E731
        self._names[key] = reference, name
        if is_home:
            self._things[name] = reference

    def find(self, name: str) -> Any:
        """Return the thing of that name that is at home here, None where there is none."""
        reference = self._things.get(name)
        return None if reference is None else reference()


class _Space:
    """What has arrived of one version of an atom."""

    def __init__(self) -> None:
        self.things: dict[str, Any] = {}
        self.places: dict[tuple[str, str], tuple[str, Any]] = {}  # naming process, and thing
        self.modules: dict[str, ModuleType] = {}
        self.referred: frozenset[str] = frozenset()  # modules that are imported here
        self._namespaces: dict[str, ModuleType] = {}
        self._builtins = {**vars(builtins), "__import__": self._import}

    def namespace(self, name: str, facts: Mapping[str, Any]) -> ModuleType:
        """Return the module whose dict is the globals of that name."""
        module = self._namespaces.get(name)
        if module is None:
            module = self._namespaces[name] = ModuleType(str(facts.get("__name__", "")))
            vars(module).update(facts, __builtins__=self._builtins)
            vars(module)[_ARRIVED] = name
        return module

    def drop(self, incomplete: Mapping[int, str]) -> None:
        """Forget things, by id and name, that lack their state since unpickling failed."""
        for name in incomplete.values():
            self.things.pop(name, None)
        whole = {n: module for n, module in self.modules.items() if id(module) not in incomplete}
        self.modules = whole

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        """Import a module of the user's own as it arrived, and any other as usual."""
        full = name
        if level:
            package = str((globals or {}).get("__package__") or "")
            full = resolve_name("." * level + name, package)
        module = self.modules.get(full)
        if module is None:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        for item in fromlist or ():
            self._put_into(module, full, item)
        parts = full.split(".")
        for end in range(1, len(parts)):
            parent = ".".join(parts[:end])
            if parent in self.modules:
                self._put_into(self.modules[parent], parent, parts[end])
        return module if fromlist else self.modules.get(parts[0], module)

    def _put_into(self, module: ModuleType, name: str, part: str) -> None:
        """Make a module that has arrived an attribute of its package, as importing it would."""
        found = self.modules.get(f"{name}.{part}")
        if found is not None and not hasattr(module, part):
            setattr(module, part, found)


class _Arriving(threading.local):
    """What the calling thread is unpickling."""

    space: str = HOME
    fresh: dict[int, str] | None = None  # ids and names of things without their state
    known: Sequence[Any] = ()  # what the pickle refers to by number
    is_locked: bool = False


_names = _Names()
_spaces: dict[str, _Space] = {}
_arriving = _Arriving()
_lock = threading.RLock()  # held until a thing is complete: no other thread uses it before


def _renew() -> None:
    global _lock
    _lock = threading.RLock()
    _names.renew()


os.register_at_fork(after_in_child=_renew)


def name_of(thing: Any) -> str:
    """Return the name under which a thing travels."""
    return _names.of(thing)


def name_of_globals(scope: Mapping[str, Any]) -> str:
    """Return the name under which the globals of functions travel."""
    return _names.of_globals(scope)


def have_arrived(scope: Mapping[str, Any]) -> bool:
    """Return whether the globals of a function came from another process."""
    return _ARRIVED in scope


def refer(space: str, modules: frozenset[str]) -> None:
    """Have a space take the things of these modules from what this process imports."""
    if modules and space != HOME:
        _spaces.setdefault(space, _Space()).referred = modules


def forget(space: str) -> None:
    """Forget what has arrived in a space."""
    _spaces.pop(space, None)


@contextmanager
def inside(space: str) -> Iterator[None]:
    """Have the calling thread unpickle into a space, unless `loads` is given another."""
    before, _arriving.space = _arriving.space, space
    try:
        yield
    finally:
        _arriving.space = before


def loads(
    data: bytes, *, space: str | None = None, buffers: Any = None, known: Sequence[Any] = ()
) -> Any:
    """Return what was pickled; raises whatever unpickling raises.

    Parameters
    ----------
    data
        The pickle.
    space
        The space of the user's own things; the one that the thread is `inside` unless given.
    buffers
        Buffers that were pickled out of band.
    known
        Classes that the pickle refers to by number.
    """
    before = _arriving.space, _arriving.fresh, _arriving.is_locked, _arriving.known
    if space is not None:
        _arriving.space = space
    _arriving.fresh, _arriving.is_locked, _arriving.known = None, False, known
    try:
        return _load(data, buffers)
    except BaseException:
        if _arriving.fresh:
            _spaces[_arriving.space].drop(_arriving.fresh)
        raise
    finally:
        if _arriving.is_locked:
            _lock.release()
        _arriving.space, _arriving.fresh, _arriving.is_locked, _arriving.known = before


def _load(data: bytes, buffers: Any) -> Any:
    """Unpickle; modules that were renamed since a store was written are found as well."""
    try:
        return pickle.loads(data, buffers=buffers)  # noqa: S301 - of our own, or asked for
    except (ModuleNotFoundError, AttributeError) as missing:
        if f"{_PACKAGE}." not in str(missing) or buffers is not None:
            raise
        return _RenamingUnpickler(io.BytesIO(data)).load()


class _RenamingUnpickler(pickle.Unpickler):
    """Finds what 0.1.0 pickled under the names that its modules had then."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle calls by module and name."""
        package, _, rest = module.partition(".")
        if package == _PACKAGE and rest in _RENAMED:
            here = _RENAMED[rest].get(name)
            # A name that is not listed is a public one, which came along with a function.
            module = package if here is None else f"{package}.{here}"
        return super().find_class(module, name)


# -- what pickles call -------------------------------------------------------------------------


def recall(number: int) -> Any:
    """Return the object of this number among those given to `loads` as `known`."""
    return _arriving.known[number]


def arrive(name: str, place: Place, maker: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return the thing of a name, made where it is not here yet.

    Parameters
    ----------
    name
        As its own process gave it.
    place
        Its module and qualified name, where these lead to it.
    maker, arguments
        Make it, without its state: `complete` brings that.
    """
    space, is_home = _enter(), _arriving.space == HOME
    if place is not None and place[0] in space.referred:
        return _at(*place)
    known = space.things.get(name)
    if known is None:
        known = _names.find(name)
    if known is None and place is not None:
        known = _at_home(place, maker) if is_home else _from_others(space, name, place, maker)
    if known is not None:
        return known
    made = maker(*arguments)
    _names.give(made, name, is_home=is_home)
    if not is_home:
        space.things[name] = made
        if place is not None:
            space.places.setdefault(place, (_process_of(name), made))
    _fresh()[id(made)] = name
    return made


def _at_home(place: tuple[str, str], maker: Callable[..., Any]) -> Any:
    """Return the thing that is at a place today: an earlier process may have named it."""
    known = _at(*place)
    is_other = maker is FunctionType and not isinstance(known, FunctionType)
    return None if is_other else known  # perhaps an atom, made of the function by a decorator


def _from_others(
    space: _Space, name: str, place: tuple[str, str], maker: Callable[..., Any]
) -> Any:
    """Return the class at the same place that another process named; None where there is none.

    A client may send inputs to an atom of another client, and both mean the same class. Functions
    of two processes may do different things, so they stay two.
    """
    process, known = space.places.get(place, ("", None))
    return None if maker is FunctionType or process == _process_of(name) else known


def _process_of(name: str) -> str:
    return name.partition("-")[0]


def arrive_function(
    name: str, place: Place, scope: tuple[str, dict[str, Any]], code: CodeType, closure: Any
) -> Any:
    """Return a function as `arrive` does; its globals are those of its module in the space."""
    space, (globals_name, facts) = _enter(), scope
    module = sys.modules.get(str(facts.get("__name__"))) if _arriving.space == HOME else None
    if module is None or _names.of_globals(vars(module)) != globals_name:
        module = space.namespace(globals_name, facts)
    namespace = vars(module)  # today's, for a module of this very process
    return arrive(name, place, FunctionType, (code, namespace, None, None, closure))


def arrive_module(name: str, scope: tuple[str, dict[str, Any]]) -> Any:
    """Return a module of the user's own."""
    space = _enter()
    if _arriving.space == HOME and (known := _at(name, "")) is not None:
        return known
    module = space.namespace(*scope)
    if space.modules.setdefault(name, module) is module:
        _fresh().setdefault(id(module), "")
    return module


def complete(thing: Any, state: tuple[Callable[[Any, Any], Any], Any]) -> None:
    """Give a thing its state, unless it was here before."""
    if id(thing) in _fresh():
        setter, value = state
        setter(thing, value)


def fill_function(function: FunctionType, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Give a function the state that cloudpickle took of it; globals that are there stay."""
    attributes, slots = state
    vars(function).update(attributes)
    del slots["_cloudpickle_submodules"]  # they were imported by being unpickled
    if (source := slots.pop("__source__", None)) is not None:
        function.__code__ = with_lines(function.__code__, SourceLines(*source))
    given = slots.pop("__globals__")
    if have_arrived(function.__globals__):  # else they are those of a module of this process
        fill_globals(function.__globals__, given)
    cells = zip(function.__closure__ or (), slots.pop("__closure__") or (), strict=True)
    for cell, given in cells:
        try:
            cell.cell_contents = given.cell_contents
        except ValueError:  # it is empty
            continue
    for name, value in slots.items():
        setattr(function, name, value)


def fill_globals(scope: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Add globals that are not there yet."""
    for name, value in given.items():
        scope.setdefault(name, value)


def fill_module(module: ModuleType, given: Mapping[str, Any]) -> None:
    """Give a module its attributes."""
    fill_globals(vars(module), given)


def _enter() -> _Space:
    """Return the space that the thread unpickles into, and keep other threads out."""
    if not _arriving.is_locked:
        _lock.acquire()
        _arriving.is_locked = True
    space = _spaces.get(_arriving.space)
    if space is None:
        space = _spaces[_arriving.space] = _Space()
    return space


def _fresh() -> dict[int, str]:
    if _arriving.fresh is None:
        _arriving.fresh = {}
    return _arriving.fresh


def _at(module: str, qualname: str) -> Any:
    """Return what a module has under a name today, None where there is no such thing."""
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for name in qualname.split(".") if qualname else ():
            found = getattr(found, name)
    except Exception:  # noqa: BLE001 - importing runs anybody's code
        return None
    return found
