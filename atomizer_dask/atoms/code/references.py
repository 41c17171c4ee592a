"""From an atom to all that it refers to."""

from __future__ import annotations

import builtins
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from importlib.util import resolve_name
from operator import itemgetter
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from atomizer_dask.atoms.base import Atom
from atomizer_dask.atoms.code.buffers import LARGE_BUFFER, digest_of_buffer
from atomizer_dask.atoms.code.bytecode import PLACE, Used, keys_read, what_counts
from atomizer_dask.atoms.code.own_modules import file_of, is_own
from atomizer_dask.atoms.code.texts import source_of, text_of_file, text_of_value
from atomizer_dask.atoms.code.values import (
    CONTAINERS,
    Digest,
    attributes_of,
    closure_of,
    contents_of,
    defaults_of,
    functions_within,
)
from atomizer_dask.atoms.definition import ClassAtom, Definition, FunctionAtom
from atomizer_dask.atoms.global_generators import GENERATORS, is_generator

_MOST_VISITED = 200_000  # objects within values, beyond which only their types count
_FILLED = (list, dict, set, bytearray, deque)
_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None), type(...)})
_ATOM = {"id", "isolation", "singleton"}
_NOT_CODE = PLACE | {
    "__module__", "__dict__", "__weakref__", "__annotations__", "__abstractmethods__", "_abc_impl",
    "__dataclass_fields__", "__dataclass_params__", "__parameters__", "__orig_bases__",
    "__annotate_func__", "__annotations_cache__", "__slotnames__",
}  # fmt: skip


@dataclass(slots=True)
class CodePart:
    """A function, a class, a value or a file that an atom refers to.

    Attributes
    ----------
    name
        ``module.qualname``.
    contents, text
        Functions that return its digest, and its source or a short text.
    digest
        Digest of this part alone; empty until it is looked at.
    refers_to
        Numbers of the other parts that it refers to, in order.
    """

    name: str
    contents: Callable[[], str]
    text: Callable[[], str]
    digest: str = ""
    refers_to: list[int] = field(default_factory=list)


class References:
    """A walk from an atom to all it refers to, in an order that depends only on the code.

    The digest of a part leaves out the parts that it refers to, so that it shows which part has
    changed. Their numbers are kept in order, and count in the fingerprint.

    Parameters
    ----------
    home
        Of the atom; see `home_of`.
    depth
        How many sets it is within.
    in_full
        Whether large buffers count by all of their bytes, as they once did, not by a digest.

    Attributes
    ----------
    has_digests
        Whether there were such buffers.
    """

    def __init__(self, home: str, depth: int = 0, *, in_full: bool = False) -> None:
        self.home, self.depth, self.in_full = home, depth, in_full
        self.has_digests = False
        self.parts: list[CodePart] = []
        self.numbers: dict[Any, int] = {}
        self.refers_to: list[int] = []  # of the current part
        self.path: list[int] = []
        self.known: dict[int, tuple[Any, str, list[int]]] = {}  # holds the objects: ids stay theirs
        self.strict = self.visited = 0
        self.names: set[str] = set()  # of attributes that the functions so far refer to

    def fingerprint(self, value: Any) -> str:
        """Return the digest of all that an atom, or another value, refers to."""
        first = self.refers_to
        digests = [self._value(value)]
        for part in self.parts:  # grows meanwhile
            self.refers_to = part.refers_to
            part.digest = self._guarded(part.contents, "part")
        digests += [_digest(part.digest, *part.refers_to) for part in self.parts]
        return _digest(*digests, *first)

    def _guarded(self, digest: Callable[[], str], instead: str) -> str:
        before = len(self.refers_to)
        try:
            return digest()
        except Exception:  # whatever foreign objects raise
            if self.strict:
                raise
            del self.refers_to[before:]
            return _digest("opaque", instead)

    def _part(
        self, key: Any, name: str, contents: Callable[[], str], text: Callable[[], str]
    ) -> str:
        """Refer to a part from the current one; a new part is looked at later."""
        if key not in self.numbers:
            self.numbers[key] = len(self.parts)
            self.parts.append(CodePart(name, contents, text))
        self.refers_to.append(self.numbers[key])
        return "part"

    def _named(self, name: str, value: Any, key: Any) -> str:
        """Refer to what a variable or an attribute holds; a value becomes a part of that name."""
        kinds = Definition, FunctionType, BuiltinFunctionType, ModuleType, type
        if issubclass(type(value), kinds) or "__wrapped__" in attributes_of(value):
            return self._value(value)
        return self._part(key, name, lambda: self._value(value), lambda: text_of_value(value))

    def _function(self, function: FunctionType) -> str:
        used, scope = Used(), function.__globals__
        contents: list[Any] = [what_counts(function.__code__, used, self._value)]
        self.names |= used.attributes
        read = keys_read(function.__code__)
        for name in sorted(used.globals - used.stored):
            value = scope.get(name)
            if ("global", name) in used.filled and isinstance(value, _FILLED):
                contents += name, self._filled(value, used.filled["global", name], read)
            else:
                contents += name, self._variable(name, scope, used.attributes)
        held = [("cell", name, name, value) for name, value in closure_of(function).items()]
        held += [("local", name, name, value) for name, value in defaults_of(function).items()]
        attributes = vars(function).items()
        held += [("attribute", name, f"{name} (attribute)", value) for name, value in attributes]
        for kind, own, name, value in held:
            if (kind, own) in used.filled and isinstance(value, _FILLED):
                contents += name, self._filled(value, used.filled[kind, own], read)
                continue
            where = f"{_name_of(function)}.{name}"
            contents += name, self._named(where, value, (id(function), name))
        self._imports(used, scope.get("__package__") or "")
        return _digest("function", *contents)

    def _filled(self, value: Any, stored: frozenset[Any] | None, read: frozenset[Any]) -> str:
        """Return the digest of a container that the function fills.

        Items that the function stores do not count: they depend on what it has computed so far.
        The other items of a dict count; where the function computes keys, only the items that its
        code can look up by a constant.
        """
        if not isinstance(value, dict):
            return _digest("filled", type(value).__qualname__)
        counts = [key for key in value if (key in read if stored is None else key not in stored)]
        return _digest("filled", *(self._value([key, value[key]]) for key in counts))

    def _variable(self, name: str, scope: dict[str, Any], attributes: set[str]) -> str:
        if name not in scope or name.startswith("__"):
            return "builtin" if hasattr(builtins, name) else "absent"
        value = scope[name]
        if not isinstance(value, ModuleType):
            return self._named(f"{scope.get('__name__')}.{name}", value, (id(scope), name))
        if not is_own(value.__name__, self.home, getattr(value, "__file__", None)):
            return value.__name__
        left = attributes - {name}  # ends where modules have each other as attributes
        taken = sorted(attributes & vars(value).keys())
        return _digest("module", *((one, self._variable(one, vars(value), left)) for one in taken))

    def _imports(self, used: Used, package: str) -> None:
        """Refer to files imported within functions, whether or not they have been imported yet."""
        for name in sorted(used.imports):
            with suppress(Exception):
                module = resolve_name(name, package)
                path = file_of(module) if is_own(module, self.home) else None
                if path and is_own(module, self.home, path):
                    digest = partial(self._file, path, module)
                    self._part(path, module, digest, partial(text_of_file, path))

    def _file(self, path: str, module: str) -> str:
        used, source = Used(), Path(path).read_bytes()
        code = compile(source, path, "exec", dont_inherit=True)
        contents = what_counts(code, used, self._value)
        is_package = Path(path).stem == "__init__"
        self._imports(used, module if is_package else module.rpartition(".")[0])
        return _digest("file", *contents)

    def _cls(self, cls: type) -> str:
        contents = [self._value(base) for base in (*cls.__bases__, type(cls))]
        skipped = _NOT_CODE | _ATOM if issubclass(cls, Atom) else _NOT_CODE
        for name, member in sorted(vars(cls).items()):
            if name not in skipped:
                contents += name, self._member(cls, name, member)
        return _digest("class", *contents)

    def _member(self, cls: type, name: str, member: Any) -> str:
        is_function = isinstance(member, FunctionType)
        if is_function and member.__globals__.get("__name__") == cls.__module__:
            return self._function(member)
        inner = functions_within(member)
        if inner and not is_function:
            return _digest(type(member).__name__, *(self._member(cls, name, one) for one in inner))
        return self._named(f"{_name_of(cls)}.{name}", member, (id(cls), name))

    def _value(self, value: Any) -> str:
        kind = type(value)
        if kind in _PLAIN:
            return _digest(kind.__name__, self._plain(value))
        if kind is Digest:
            self.has_digests = True
            return _digest("buffer", value)
        if kind in (list, tuple, set, frozenset) and set(map(type, value)) <= _PLAIN:
            items = [type(item).__name__ + self._plain(item) for item in value]
            return _digest(kind.__name__, items if kind in (list, tuple) else sorted(items))
        return self._guarded(lambda: self._once(value), kind.__qualname__)

    def _plain(self, value: Any) -> str:
        """Return a number or a text in a form that is the same everywhere."""
        if type(value) is int:
            return hex(value)  # repr refuses enormous ones
        if type(value) not in (str, bytes) or len(value) < LARGE_BUFFER or self.in_full:
            return repr(value)
        self.has_digests = True
        data = value if type(value) is bytes else value.encode(errors="surrogatepass")
        return digest_of_buffer(data)

    def _once(self, value: Any) -> str:
        if id(value) in self.known:
            _, digest, refers_to = self.known[id(value)]
            self.refers_to += refers_to
            return digest
        if id(value) in self.path:
            return _digest("cycle", len(self.path) - self.path.index(id(value)))
        self.visited += 1
        if self.visited > _MOST_VISITED:
            return type(value).__qualname__
        before = len(self.refers_to)
        self.path.append(id(value))
        try:
            digest = self._digest_of(value)
        finally:
            self.path.pop()
        self.known[id(value)] = value, digest, self.refers_to[before:]
        return digest

    def _digest_of(self, value: Any) -> str:
        kind = type(value)
        if isinstance(value, FunctionType):
            return self._reference(value)
        if isinstance(value, type):
            if not is_own(value.__module__, self.home):
                return f"{value.__module__}.{value.__qualname__}"
            digest, text = partial(self._cls, value), partial(source_of, value)
            return self._part(id(value), _name_of(value), digest, text)
        if isinstance(value, ModuleType):
            return "module" if is_own(value.__name__, self.home) else value.__name__
        if isinstance(value, FunctionAtom | ClassAtom):
            return self._definition(value)
        if is_generator(value) or id(value) in GENERATORS:
            return _digest(kind.__qualname__)  # its state depends on how much was drawn
        if kind in (set, frozenset):
            contents = self._ordered(value)
        else:
            contents = contents_of(value, in_full=self.in_full)
        # Something installed that holds what cannot be pickled, as a connection does, may differ
        # in each process: it counts by type. The user's own objects count by each attribute.
        is_foreign = kind not in CONTAINERS and not is_own(kind.__module__, self.home)
        self.strict += is_foreign
        try:
            return _digest(kind.__qualname__, *map(self._value, contents))
        finally:
            self.strict -= is_foreign

    def _reference(self, function: FunctionType) -> str:
        module = str(function.__globals__.get("__name__"))
        if is_own(module, self.home, function.__globals__.get("__file__")):
            digest, text = partial(self._function, function), partial(source_of, function)
            return self._part(id(function), _name_of(function), digest, text)
        # What a decorator from a package has wrapped, and the options it was given.
        held = closure_of(function).values()
        taken = [one for one in held if callable(one) or type(one) in _PLAIN]
        taken += [*functions_within(function), *dict(vars(function).get("registry", {})).items()]
        return _digest(module, function.__code__.co_qualname, *map(self._value, taken))

    def _definition(self, definition: FunctionAtom[..., Any] | ClassAtom) -> str:
        if isinstance(definition, FunctionAtom):
            if definition.vectorized:
                self._named(f"{definition.id} (vectorized)", True, (id(definition), "vectorized"))
            for name, value in sorted(definition.fixed.items()):
                where = f"{definition.id} (fixed {name})"
                self._named(where, value, (id(definition), "fixed", name))
            return self._named(definition.id, definition.function, id(definition))
        contents = [self._value(definition.cls)]
        for name, value in sorted(attributes_of(definition.instance).items()):
            if name not in _ATOM:
                where = f"{_name_of(definition.cls)}().{name}"
                contents += name, self._named(where, value, (id(definition), name))
        return _digest(*contents)

    def _ordered(self, values: Any) -> list[Any]:
        """Return the elements of a set in an order that does not depend on their hashes."""
        if self.depth > 2:  # sets within sets, or cycles
            return sorted(values, key=lambda value: type(value).__qualname__)
        walks = [References(self.home, self.depth + 1, in_full=self.in_full) for _ in values]
        digests = [walk.fingerprint(value) for walk, value in zip(walks, values, strict=True)]
        self.has_digests |= any(walk.has_digests for walk in walks)
        order = sorted(zip(digests, values, strict=True), key=itemgetter(0))
        return [value for _, value in order]


def _digest(*things: Any) -> str:
    return blake2b(repr(things).encode(), digest_size=8).hexdigest()


def _name_of(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
