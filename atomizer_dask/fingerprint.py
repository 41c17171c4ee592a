"""What code an atom consists of: the same on every machine for the same source.

A function counts by its bytecode, so comments, docstrings and its place do not matter, and neither
does the name of its module. What it refers to is followed as far as it is the user's own; installed
packages count by name, their versions are in `provenance`.
"""

from __future__ import annotations

import builtins
import contextlib
import copyreg
import dis
import functools
import importlib.util
import inspect
import linecache
import re
import reprlib
import sys
import sysconfig
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from difflib import unified_diff
from hashlib import blake2b
from importlib.machinery import PathFinder
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import pandas as pd

from atomizer_dask.atom import Atom, ClassAtom, Definition, FunctionAtom

_SHOWN = 2000  # characters of a source
_LOOKED_AT = 200_000  # objects within values, beyond which only their types count
_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None), type(...)})
_FLAGS = 0x2AC  # *args, **kwargs, generator, coroutine, asynchronous generator
_READABLE = {*dis.hasname, *dis.haslocal, *dis.hasfree, *dis.hasjrel, *dis.hasjabs}
_SKIPPED = "EXTENDED_ARG", "CACHE", "NOP", "PUSH_NULL"
_FAST = re.compile("(?:LOAD|STORE)_FAST(?:_BORROW)?")
_GLOBALS = "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"
_PLACE = {"__doc__", "__qualname__", "__firstlineno__", "__static_attributes__"}
_ATOM = {"id", "isolation", "singleton"}
_NOT_CODE = _PLACE | {
    "__module__", "__dict__", "__weakref__", "__annotations__", "__abstractmethods__", "_abc_impl",
    "__dataclass_fields__", "__dataclass_params__", "__parameters__", "__orig_bases__",
    "__annotate_func__", "__annotations_cache__", "__slotnames__",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Code:
    """The code of an atom: a digest, and the sources by name, to show what changed.

    Attributes
    ----------
    fingerprint
        16 hex digits, which depend neither on the id of the atom nor on the names of modules.
    parts
        ``module.qualname`` of each function, class and value, to the digest of it alone.
    sources
        The same names, to the source or a short text of the value, at most 2000 characters.
    """

    fingerprint: str
    parts: dict[str, str]
    sources: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dicts and strings."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Code:
        """Return what `to_json` wrote."""
        return cls(data["fingerprint"], dict(data["parts"]), dict(data["sources"]))

    def changes_to(self, other: Code) -> str:
        """Return what is different in `other`, for people to read; empty where nothing is."""
        if self.fingerprint == other.fingerprint:
            return ""
        lines = [
            _change(name, self.sources.get(name, ""), other.sources.get(name, ""))
            for name in self.parts.keys() & other.parts.keys()
            if self.parts[name] != other.parts[name]
        ]
        for kind, here, there in (
            ("gone", self.parts, other.parts),
            ("new", other.parts, self.parts),
        ):
            elsewhere = set(there.values())  # it only moved
            lines += [f"{kind}: {n}" for n in here.keys() - there if here[n] not in elsewhere]
        return "\n".join(sorted(lines)) or "the same parts refer to each other in another way"


def _change(name: str, before: str, now: str) -> str:
    if before == now:
        return f"{name}: changed, but not in what is kept of its source"
    if "\n" not in before + now:
        return f"{name}: {before} -> {now}"
    sides = before.splitlines(), now.splitlines()
    return "\n".join(unified_diff(*sides, f"{name} before", f"{name} now", lineterm=""))


def code_of(definition: Definition) -> Code:
    """Return what code an atom consists of.

    Values count as they are now, apart from globals that the atom's code assigns itself. What is
    imported within functions counts as a whole file where it is the user's own. Objects that
    cannot be pickled count by their type.

    >>> from atomizer_dask.atom import FunctionAtom
    >>> def double(x):
    ...     return FACTOR * x
    >>> FACTOR = 2
    >>> before = code_of(FunctionAtom(double))
    >>> FACTOR = 3
    >>> print(before.changes_to(code_of(FunctionAtom(double))))
    atomizer_dask.fingerprint.FACTOR: 2 -> 3
    """
    return _Walk(_home(definition)).code(definition)


def _home(definition: Definition) -> str:
    """Return the package that an atom lives in: its own code even where it is installed."""
    target: Any = getattr(definition, "function", None) or getattr(definition, "cls", None)
    while "__wrapped__" in (attributes := _attributes(target)):
        target = attributes["__wrapped__"]
    module = str(getattr(target, "__module__", ""))
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return ""
    return module if top == "atomizer_dask" else top


@dataclass(slots=True)
class _Part:
    name: str
    contents: Callable[[], str]
    text: Callable[[], str]
    digest: str = ""
    refers_to: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Used:
    """What the bytecode of a function, and of those within it, refers to by name."""

    globals: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    imports: set[str] = field(default_factory=set)

    def add(self, operation: str, name: str, before: list[Any]) -> None:
        if operation in _GLOBALS:
            self.globals.add(name)
        elif operation == "STORE_GLOBAL":
            self.stored.add(name)
        elif operation == "IMPORT_NAME":
            level, taken = before[-2:]
            module = "." * level + name
            within = f"{module}." if name else module
            self.imports |= {module, *(within + item for item in taken or ())}
        else:
            self.attributes.add(name)


class _Walk:
    """Goes from an atom to all it refers to, in an order that only depends on the code.

    The digest of a part leaves out the parts it refers to, so that it tells what has changed; which
    ones these are is kept as their numbers, in order, and counts in the fingerprint.
    """

    def __init__(self, home: str, depth: int = 0) -> None:
        self.home, self.depth = home, depth
        self.parts: list[_Part] = []
        self.numbers: dict[Any, int] = {}
        self.refers_to: list[int] = []  # of the part in hand
        self.path: list[int] = []
        self.known: dict[int, tuple[Any, str, list[int]]] = {}  # holds the objects: ids stay theirs
        self.strict = self.looked_at = 0

    def code(self, value: Any) -> Code:
        first = self.refers_to
        digests = [self.value(value)]
        for part in self.parts:  # grows meanwhile
            self.refers_to = part.refers_to
            part.digest = self.guarded(part.contents, "part")
        parts, sources = {}, {}
        for part in self.parts:
            digests.append(_digest(part.digest, *part.refers_to))
            name, count = part.name, 1
            while name in parts:
                count += 1
                name = f"{part.name}#{count}"
            parts[name], sources[name] = part.digest, part.text()
        return Code(_digest(*digests, *first), parts, sources)

    def guarded(self, look: Callable[[], str], instead: str) -> str:
        before = len(self.refers_to)
        try:
            return look()
        except Exception:  # whatever foreign objects raise
            if self.strict:
                raise
            del self.refers_to[before:]
            return _digest("opaque", instead)

    def part(
        self, key: Any, name: str, contents: Callable[[], str], text: Callable[[], str]
    ) -> str:
        """Refer to a part from the one in hand; a new one is looked at later."""
        if key not in self.numbers:
            self.numbers[key] = len(self.parts)
            self.parts.append(_Part(name, contents, text))
        self.refers_to.append(self.numbers[key])
        return "part"

    def named(self, name: str, value: Any, key: Any) -> str:
        """Refer to what a variable or an attribute holds; a value becomes a part of that name."""
        kinds = Definition, FunctionType, BuiltinFunctionType, ModuleType, type
        if issubclass(type(value), kinds) or "__wrapped__" in _attributes(value):
            return self.value(value)
        return self.part(key, name, lambda: self.value(value), lambda: _text(value))

    def own(self, module: str, file: str | None = None) -> bool:
        """Whether a module is the user's own, rather than something that has a version."""
        top = module.partition(".")[0]
        if f"{module}.".startswith(f"{self.home}.") or top in ("__main__", "__mp_main__"):
            return True
        if top == "atomizer_dask" or top in sys.stdlib_module_names:
            return False
        for name in (module, top):
            file = file or getattr(sys.modules.get(name), "__file__", None)
        return not file or not _is_installed(file)

    def bytecode(self, code: CodeType, used: _Used) -> str:
        """Digest the instructions, apart from what depends on where the source stands.

        That is: the indices of constants and names, which shift as docstrings come and go; offsets;
        no-operations and pairs of instructions, which line breaks make; and the way to call a
        function of a module, which depends on whether it is imported in the same notebook cell.
        """
        lines: list[tuple[Any, ...]] = []
        arguments: list[Any] = []
        index: dict[int, int] = {}
        listing = dis.Bytecode(code)
        for one in listing:
            index[one.offset] = len(lines)
            operation, argument = one.opname, one.argval
            if operation in _SKIPPED:
                continue
            if operation == "STORE_NAME" and argument in _PLACE:
                del lines[-1], arguments[-1]
                continue
            if one.opcode in dis.hasname:
                used.add(operation, argument, arguments)
            arguments.append(argument)
            if isinstance(argument, tuple) and one.opcode in dis.haslocal:
                pair = zip(_FAST.findall(operation), argument, strict=True)
                lines += [(*single, 0) for single in pair]
                continue
            if one.opcode in dis.hasconst:
                inner = isinstance(argument, CodeType)
                argument = self.bytecode(argument, used) if inner else self.value(argument)
            elif one.opcode not in _READABLE:
                argument = one.arg
            flags = (one.arg or 0) & 3 if operation == "LOAD_SUPER_ATTR" else 0
            lines.append((operation.replace("LOAD_METHOD", "LOAD_ATTR"), argument, flags))
        jumps = {*dis.hasjrel, *dis.hasjabs}
        lines = [
            (line[0], index.get(line[1]), "jump") if dis.opmap[line[0]] in jumps else line
            for line in lines
        ]
        caught = [
            (*map(index.get, (entry.start, entry.end, entry.target)), entry.depth, entry.lasti)
            for entry in getattr(listing, "exception_entries", ())
        ]
        counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
        variables = code.co_varnames, code.co_cellvars, code.co_freevars
        return _digest(counts, code.co_flags & _FLAGS, variables, caught, lines)

    def function(self, function: FunctionType) -> str:
        used, code, scope = _Used(), function.__code__, function.__globals__
        contents = [self.bytecode(code, used)]
        for name in sorted(used.globals - used.stored):
            contents += name, self.variable(name, scope, used.attributes)
        held = dict(zip(code.co_freevars, map(_held, function.__closure__ or ()), strict=True))
        defaults = function.__defaults__ or ()
        last = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
        held |= dict(zip(last, defaults, strict=True)) | (function.__kwdefaults__ or {})
        held |= {f"{name} (attribute)": value for name, value in vars(function).items()}
        for name, value in held.items():
            contents += name, self.named(f"{_name(function)}.{name}", value, (id(function), name))
        self.imports(used, scope.get("__package__") or "")
        return _digest("function", *contents)

    def variable(self, name: str, scope: dict[str, Any], attributes: set[str]) -> str:
        if name not in scope or name.startswith("__"):
            return "builtin" if hasattr(builtins, name) else "absent"
        value = scope[name]
        if not isinstance(value, ModuleType):
            return self.named(f"{scope.get('__name__')}.{name}", value, (id(scope), name))
        if not self.own(value.__name__, getattr(value, "__file__", None)):
            return value.__name__
        left = attributes - {name}  # ends where modules have each other as attributes
        taken = sorted(attributes & vars(value).keys())
        return _digest("module", *((one, self.variable(one, vars(value), left)) for one in taken))

    def imports(self, used: _Used, package: str) -> None:
        """Refer to files imported within functions, whether or not that has happened by now."""
        for name in sorted(used.imports):
            with contextlib.suppress(Exception):
                module = importlib.util.resolve_name(name, package)
                path = _file_of(module) if self.own(module) else None
                if path and self.own(module, path):
                    look = functools.partial(self.file, path, module)
                    self.part(path, module, look, functools.partial(_beginning, path))

    def file(self, path: str, module: str) -> str:
        used = _Used()
        digest = self.bytecode(
            compile(Path(path).read_bytes(), path, "exec", dont_inherit=True), used
        )
        is_package = Path(path).stem == "__init__"
        self.imports(used, module if is_package else module.rpartition(".")[0])
        return digest

    def cls(self, cls: type) -> str:
        contents = [self.value(base) for base in (*cls.__bases__, type(cls))]
        skipped = _NOT_CODE | _ATOM if issubclass(cls, Atom) else _NOT_CODE
        for name, member in sorted(vars(cls).items()):
            if name not in skipped:
                contents += name, self.member(cls, name, member)
        return _digest("class", *contents)

    def member(self, cls: type, name: str, member: Any) -> str:
        is_function = isinstance(member, FunctionType)
        if is_function and member.__globals__.get("__name__") == cls.__module__:
            return self.function(member)
        inner = _within(member)
        if inner and not is_function:
            return _digest(type(member).__name__, *(self.member(cls, name, one) for one in inner))
        return self.named(f"{_name(cls)}.{name}", member, (id(cls), name))

    def value(self, value: Any) -> str:
        kind = type(value)
        if kind in _PLAIN:
            return _digest(kind.__name__, _plain(value))
        if kind in (list, tuple, set, frozenset) and set(map(type, value)) <= _PLAIN:
            items = [type(item).__name__ + _plain(item) for item in value]
            return _digest(kind.__name__, items if kind in (list, tuple) else sorted(items))
        return self.guarded(lambda: self.once(value), kind.__qualname__)

    def once(self, value: Any) -> str:
        if id(value) in self.known:
            _, digest, refers_to = self.known[id(value)]
            self.refers_to += refers_to
            return digest
        if id(value) in self.path:
            return _digest("cycle", len(self.path) - self.path.index(id(value)))
        self.looked_at += 1
        if self.looked_at > _LOOKED_AT:
            return type(value).__qualname__
        before = len(self.refers_to)
        self.path.append(id(value))
        try:
            digest = self.look(value)
        finally:
            self.path.pop()
        self.known[id(value)] = value, digest, self.refers_to[before:]
        return digest

    def look(self, value: Any) -> str:
        kind = type(value)
        if isinstance(value, FunctionType):
            return self.reference(value)
        if isinstance(value, type):
            if not self.own(value.__module__):
                return f"{value.__module__}.{value.__qualname__}"
            look, text = functools.partial(self.cls, value), functools.partial(_source, value)
            return self.part(id(value), _name(value), look, text)
        if isinstance(value, ModuleType):
            return "module" if self.own(value.__name__) else value.__name__
        if isinstance(value, FunctionAtom | ClassAtom):
            return self.definition(value)
        if kind in (list, tuple):
            return _digest(kind.__name__, *map(self.value, value))
        if kind is dict:
            return _digest("dict", *((self.value(k), self.value(v)) for k, v in value.items()))
        if kind in (set, frozenset):
            return _digest(kind.__name__, *map(self.value, self.ordered(value)))
        if kind is np.ndarray:
            exact = value.tolist() if value.dtype.hasobject or value.dtype.kind == "T" else None
            contents = self.value(value.tobytes() if exact is None else exact)
            return _digest("array", str(value.dtype), value.shape, contents)
        if isinstance(value, pd.DataFrame | pd.Series | pd.Index):
            return self.pandas(value)
        if inner := _within(value):
            return _digest(kind.__qualname__, *map(self.value, inner))
        return self.object(value)

    def reference(self, function: FunctionType) -> str:
        module = str(function.__globals__.get("__name__"))
        if self.own(module, function.__globals__.get("__file__")):
            look, text = (
                functools.partial(self.function, function),
                functools.partial(_source, function),
            )
            return self.part(id(function), _name(function), look, text)
        # What a decorator from a package has wrapped, and the options it was given.
        held = [_held(cell) for cell in function.__closure__ or ()]
        taken = [one for one in held if callable(one) or type(one) in _PLAIN]
        taken += [*_within(function), *dict(vars(function).get("registry", {})).items()]
        return _digest(module, function.__code__.co_qualname, *map(self.value, taken))

    def definition(self, definition: FunctionAtom | ClassAtom) -> str:
        if isinstance(definition, FunctionAtom):
            if definition.vectorized:
                self.named(f"{definition.id} (vectorized)", True, (id(definition), "vectorized"))
            return self.named(definition.id, definition.function, id(definition))
        contents = [self.value(definition.cls)]
        for name, value in sorted(_attributes(definition.instance).items()):
            if name not in _ATOM:
                where = f"{_name(definition.cls)}().{name}"
                contents += name, self.named(where, value, (id(definition), name))
        return _digest(*contents)

    def pandas(self, value: pd.DataFrame | pd.Series[Any] | pd.Index[Any]) -> str:
        rows = pd.util.hash_pandas_object(value).to_numpy()
        if isinstance(value, pd.DataFrame):
            names = [
                *value.columns,
                *value.columns.names,
                *value.index.names,
                *value.dtypes.map(str),
            ]
        else:
            names = [value.name, str(value.dtype)]
        return _digest(type(value).__name__, value.shape, self.value(rows), self.value(names))

    def object(self, value: Any) -> str:
        """Digest what pickle would write; by their type where that fails."""
        kind = type(value)
        own = self.own(kind.__module__)
        reduce = copyreg.dispatch_table.get(kind)
        reduced: Any = reduce(value) if reduce else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return _digest(kind.__qualname__, str(getattr(value, "__module__", "")), reduced)
        maker, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        if type(state) is dict and all(isinstance(name, str) for name in state):
            cached = functools.cached_property
            state = [
                (name, held)
                for name, held in sorted(state.items())
                if not isinstance(inspect.getattr_static(kind, name, None), cached)
            ]
        # Something installed that holds what cannot be pickled, as a connection does, may differ
        # in each process: it counts by type. The user's own objects count by each attribute.
        self.strict += not own
        try:
            contents = maker, arguments, state, list(items or ()), list(pairs or ())
            return _digest("object", *map(self.value, contents))
        finally:
            self.strict -= not own

    def ordered(self, values: Any) -> list[Any]:
        """Return the elements of a set in an order that does not depend on their hashes."""
        if self.depth > 2:  # sets within sets, or cycles
            return sorted(values, key=lambda value: type(value).__qualname__)
        key = lambda value: _Walk(self.home, self.depth + 1).code(value).fingerprint  # noqa: E731
        return sorted(values, key=key)


def _digest(*things: Any) -> str:
    return blake2b(repr(things).encode(), digest_size=8).hexdigest()


def _plain(value: Any) -> str:
    return hex(value) if type(value) is int else repr(value)  # repr refuses enormous integers


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _attributes(value: Any) -> dict[str, Any]:
    try:
        return dict(vars(value))
    except Exception:  # noqa: BLE001 - it has none, or does not want to show them
        return {}


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


def _within(value: Any) -> list[Any]:
    """Return the functions that a descriptor or a decorated function stands for."""
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, functools.cached_property):
        return [value.func]
    attributes = _attributes(value)
    return [attributes["__wrapped__"]] if "__wrapped__" in attributes else []


@functools.cache
def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return paths["purelib"], paths["platlib"], paths["stdlib"]


def _is_installed(file: str) -> bool:
    return file.startswith(_installed()) or "site-packages" in file or "dist-packages" in file


def _file_of(module: str) -> str | None:
    """Return the file of a module without importing it, nor the packages it is in."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for one in rest:
        if spec is None or not spec.submodule_search_locations:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{one}", spec.submodule_search_locations)
    return spec.origin if spec and spec.origin and spec.origin.endswith(".py") else None


def _beginning(path: str) -> str:
    return Path(path).read_text(errors="replace")[:_SHOWN]


def _text(value: Any) -> str:
    show = reprlib.Repr()
    for limit in vars(show):
        if limit.startswith("max") and limit != "maxlevel":
            setattr(show, limit, 200)
    show.maxstring = show.maxother = _SHOWN
    try:
        return re.sub(r" at 0x[0-9a-fA-F]+", "", show.repr(value))[:_SHOWN]
    except Exception:  # noqa: BLE001 - whatever their repr raises
        return type(value).__qualname__


def _source(thing: Any) -> str:
    """Return the text of a function or a class.

    `inspect.getsource` is slow for classes, and does not know those of a notebook.
    """
    try:
        lines, first = _lines_of(thing)
        return textwrap.dedent("".join(inspect.getblock(lines[first:])))[:_SHOWN]
    except Exception:  # noqa: BLE001 - no text, or not that of this code
        return ""


def _lines_of(thing: Any) -> tuple[list[str], int]:
    """Return the lines of a file and the index of the first one of a function or a class."""
    if isinstance(thing, FunctionType):
        file = thing.__code__.co_filename
        linecache.checkcache(file)
        return linecache.getlines(file, thing.__globals__), thing.__code__.co_firstlineno - 1
    members = [one for member in vars(thing).values() for one in (member, *_within(member))]
    codes = [one.__code__ for one in members if isinstance(one, FunctionType)]
    # Those of a dataclass have another file, or none.
    begins = re.escape(thing.__qualname__) + r"\.\w+"
    codes = [code for code in codes if re.fullmatch(begins, code.co_qualname)]
    file = codes[0].co_filename if codes else sys.modules[thing.__module__].__file__ or ""
    linecache.checkcache(file)
    lines = linecache.getlines(file)
    before = lines[: min(code.co_firstlineno for code in codes)] if codes else lines
    heading = re.compile(rf"\s*class {thing.__name__}\b")
    return lines, max(n for n, line in enumerate(before) if heading.match(line))
