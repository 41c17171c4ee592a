"""The bytecode of a function, apart from what depends on where its source stands.

That is: the indices of constants and names, which shift as docstrings come and go; offsets;
no-operations and pairs of instructions, which line breaks make; and the way to call a function of
a module, which depends on whether it is imported in the same notebook cell.

Not the source, though `ast` would normalise it in half the lines: a file that was edited after its
import is not the code that runs.
"""

from __future__ import annotations

import dis
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType
from typing import Any

# Where the source of a class stands, and its docstring.
PLACE = frozenset({"__doc__", "__qualname__", "__firstlineno__", "__static_attributes__"})
_FLAGS = 0x2AC  # *args, **kwargs, generator, coroutine, asynchronous generator
_JUMPS = {*dis.hasjrel, *dis.hasjabs}
_READABLE = {*dis.hasname, *dis.haslocal, *dis.hasfree, *_JUMPS}
_SKIPPED = "EXTENDED_ARG", "CACHE", "NOP", "PUSH_NULL"
_FAST = re.compile("(?:LOAD|STORE)_FAST(?:_BORROW)?")
_FILLING = {"add", "append", "appendleft", "extend", "insert", "setdefault", "update"}
_GLOBALS = "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"

Line = tuple[str, Any, int]
VariableKey = tuple[str, str]  # a kind of variable, and a name
_KINDS = {
    "LOAD_GLOBAL": "global", "LOAD_NAME": "global", "LOAD_DEREF": "cell", "LOAD_FAST": "local",
    "LOAD_FAST_BORROW": "local", "LOAD_FAST_CHECK": "local", "LOAD_ATTR": "attribute",
}  # fmt: skip


@dataclass(slots=True)
class Used:
    """What a function, and those within it, refer to by name.

    Attributes
    ----------
    globals, stored, attributes
        Names of global variables, of those that it assigns, and of attributes.
    imports
        Names of imported modules, with dots before relative ones, and of the objects that are
        imported from them, which may be modules as well.
    filled
        Containers that it fills as a memo is, by kind of variable (``"global"``, ``"cell"``,
        ``"local"`` or ``"attribute"``) and name. Each has the constant keys that the function
        stores to; None where the function computes keys.
    """

    globals: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    imports: set[str] = field(default_factory=set)
    filled: dict[VariableKey, frozenset[Any] | None] = field(default_factory=dict)

    def add(self, operation: str, name: str, before: list[Any]) -> None:
        """Add the name of an instruction; `before` has the arguments of those before it."""
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


def imports_of(code: CodeType) -> list[str]:
    """Return the names of modules that a function, and those within it, may import.

    With dots before relative ones; an object that is imported from a module may be one as well.
    """
    found = list(_names_imported(code))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found += imports_of(constant)
    return found


@lru_cache(maxsize=4096)
def _names_imported(code: CodeType) -> list[str]:
    used, before = Used(), list[Any]()
    for one in dis.Bytecode(code):
        if one.opname == "IMPORT_NAME":
            used.add(one.opname, one.argval, before)
        if one.opname != "EXTENDED_ARG":
            before.append(one.argval)
    return sorted(used.imports)


@lru_cache(maxsize=4096)
def _filled(code: CodeType) -> dict[VariableKey, frozenset[Any] | None]:
    """Return the containers that are filled; see `Used.filled`."""
    listing = [one for one in dis.Bytecode(code) if one.opname not in _SKIPPED]
    found: dict[VariableKey, frozenset[Any] | None] = {}
    for position, one in enumerate(listing):
        keys: frozenset[Any] | None = None
        if one.opname == "STORE_SUBSCR" or _augments(listing[position : position + 3]):
            container = _before_key(listing, position)
            key = listing[container + 1]
            if container == position - 2 and key.opname == "LOAD_CONST":
                keys = frozenset([key.argval])
        elif one.opname in ("LOAD_ATTR", "LOAD_METHOD") and one.argval in _FILLING:
            container, key = position - 1, listing[position + 1]
            if one.argval == "setdefault" and key.opname == "LOAD_CONST":
                keys = frozenset([key.argval])
        else:
            continue
        kind = _KINDS.get(listing[container].opname) if container >= 0 else None
        if kind is not None and isinstance(listing[container].argval, str):
            place = kind, listing[container].argval
            before = found.get(place, frozenset())
            found[place] = None if keys is None or before is None else keys | before
    return found


def keys_read(code: CodeType) -> frozenset[str]:
    """Return the texts by which a function, and those within it, may look up items."""
    found = {one for one in code.co_consts if isinstance(one, str)}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= keys_read(constant)
    return frozenset(found)


def _augments(listing: list[dis.Instruction]) -> bool:
    """Return whether these instructions begin an ``x[key] += 1``."""
    return [(one.opname, one.arg) for one in listing[:2]] == [("COPY", 2)] * 2 and (
        listing[2].opname in ("BINARY_SUBSCR", "BINARY_OP")  # the latter from Python 3.14 on
    )


def _before_key(listing: list[dis.Instruction], position: int) -> int:
    """Return the index of the instruction that loads the container of a stored item, or -1."""
    height = 0
    for before in range(position - 1, -1, -1):
        one = listing[before]
        height += dis.stack_effect(one.opcode, one.arg if one.opcode >= dis.HAVE_ARGUMENT else None)
        if height == 1:
            return before - 1
    return -1


def what_counts(code: CodeType, used: Used, digest: Callable[[Any], str]) -> tuple[Any, ...]:
    """Return the parts of bytecode that count, and add the names that it refers to to `used`.

    Constants are given to `digest`; all else has a repr that is the same in each process.
    """
    listing = dis.Bytecode(code)
    for place, keys in _filled(code).items():
        before = used.filled.get(place, frozenset())
        used.filled[place] = None if keys is None or before is None else keys | before
    lines, index = _lines(listing, used, digest)
    caught = [
        (*map(index.get, (entry.start, entry.end, entry.target)), entry.depth, entry.lasti)
        for entry in getattr(listing, "exception_entries", ())
    ]
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    variables = code.co_varnames, code.co_cellvars, code.co_freevars
    return counts, code.co_flags & _FLAGS, variables, caught, lines


def _lines(
    listing: dis.Bytecode, used: Used, digest: Callable[[Any], str]
) -> tuple[list[Line], dict[int, int]]:
    """Return the instructions that count, and by offset the index of the next one that does."""
    lines: list[Line] = []
    arguments: list[Any] = []
    index: dict[int, int] = {}
    for one in listing:
        index[one.offset] = len(lines)
        if one.opname in _SKIPPED:
            continue
        if one.opname == "STORE_NAME" and one.argval in PLACE:
            del lines[-1], arguments[-1]
            continue
        if one.opcode in dis.hasname:
            used.add(one.opname, one.argval, arguments)
        arguments.append(one.argval)
        lines += _lines_of(one, used, digest)
    lines = [
        (name, index.get(argument), -1) if dis.opmap[name] in _JUMPS else (name, argument, flags)
        for name, argument, flags in lines
    ]
    return lines, index


def _lines_of(one: dis.Instruction, used: Used, digest: Callable[[Any], str]) -> list[Line]:
    argument: Any = one.argval
    if isinstance(argument, tuple) and one.opcode in dis.haslocal:
        pair = zip(_FAST.findall(one.opname), argument, strict=True)
        return [(name, variable, 0) for name, variable in pair]
    if isinstance(argument, CodeType):
        argument = what_counts(argument, used, digest)
    elif one.opcode in dis.hasconst:
        argument = digest(argument)
    elif one.opcode not in _READABLE:
        argument = one.arg
    flags = (one.arg or 0) & 3 if one.opname == "LOAD_SUPER_ATTR" else 0
    return [(one.opname.replace("LOAD_METHOD", "LOAD_ATTR"), argument, flags)]
