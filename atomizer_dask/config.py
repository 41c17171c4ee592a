"""Settings, by way of ``dask.config`` under ``atomizer:``.

Their defaults are in ``atomizer.yaml``, what they may be in ``atomizer-schema.yaml``, both beside
this file. They are read where something is made, never for each batch, and checked when first used:
an import does not fail on a typo.

`jsonschema` could check types and bounds, in place of some 20 lines; it takes as long to import as
all of this package, and does not say what to do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import dask.config
import yaml

from atomizer_dask.errors import ConfigurationError
from atomizer_dask.policy import seconds_of

ROOT = "atomizer"
_HERE = Path(__file__).parent
_DEFAULTS = _HERE / "atomizer.yaml"
_SCHEMA = _HERE / "atomizer-schema.yaml"
_VARIABLE = f"DASK_{ROOT.upper()}"
_READER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C takes a tenth


@dataclass(frozen=True, slots=True)
class Rule:
    """What a setting may be.

    Parameters
    ----------
    name
        Its section and its own name, as in ``map.timeout``.
    default
        As the YAML of defaults has it.
    types
        Types of JSON schema.
    form
        ``duration``, ``byte-size``, or empty.
    enum
        The only texts allowed; empty where any is.
    least, above, most
        Bounds of a number: the smallest allowed, the one it must exceed, the largest allowed.
    description, read
        What it is for; who reads it, and when.
    """

    name: str
    default: Any
    types: tuple[str, ...]
    form: str
    enum: tuple[str, ...]
    least: float | None
    above: float | None
    most: float | None
    description: str
    read: str

    @property
    def expected(self) -> str:
        """What it may be, in words."""
        bounds = [
            text
            for text, bound in (
                (f"above {_plain(self.above)}", self.above),
                (f"at least {_plain(self.least)}", self.least),
                (f"at most {_plain(self.most)}", self.most),
            )
            if bound is not None
        ]
        within = " and ".join(bounds)
        kinds = {
            "duration": f"seconds, {within}, or a text such as '30s' or '2 minutes'",
            "byte-size": f"bytes, {within}, or a text such as '64 KiB' or '6 MiB'",
        }
        if self.enum:
            what = " or ".join(map(repr, self.enum))
        elif self.form:
            what = kinds[self.form]
        elif "string" in self.types:
            what = "a text"
        else:
            number = "a whole number" if "integer" in self.types else "a number"
            what = f"{number}, {within}"
        return f"{what}, or null" if "null" in self.types else what


def _plain(number: float | None) -> str:
    return "" if number is None else f"{number:,g}" if number < 10**6 else f"{number:,}"


def setting(name: str) -> Any:
    """Return a setting as it is now: durations in seconds, sizes in bytes.

    To be called where something is made, rather than for each batch.

    Parameters
    ----------
    name
        Its section and its own name, as in ``"map.timeout"``.

    Raises
    ------
    ConfigurationError
        Where it has been set to a value that makes no sense.

    Examples
    --------
    >>> setting("batches.shortest"), setting("batches.largest")
    (0.25, 6291456)
    """
    rule = rules()[name]
    given = dask.config.get(f"{ROOT}.{name}", rule.default)
    try:
        return _parsed(name, given)
    except (TypeError, ValueError) as error:
        raise _error([_problem(rule, given)]) from error


def target() -> str | Path | None:
    """Return the scheduler that is configured: an address, a scheduler file, or none."""
    given = setting("connection.target")
    if given is None or "://" in given or not ("/" in given or given.endswith(".json")):
        return given
    return Path(os.path.expandvars(given)).expanduser()


def check() -> None:
    """Check all that is set under ``atomizer``.

    Raises
    ------
    ConfigurationError
        Where something is no setting, or its value makes no sense. The message names each, where
        it comes from as far as that can be found out, and what to do.
    """
    problems = []
    for name, given in _leaves(dask.config.get(ROOT, None) or {}):
        rule = rules().get(name)
        problem = _unknown(name, given) if rule is None else _problem(rule, given)
        problems += [problem] if problem else []
    problems += [
        f"{variable} in the environment sets nothing: after {_VARIABLE} there are two underscores, "
        f"and between a section and a name too, as in {_variable_of('map.timeout')}"
        for variable in sorted(os.environ)
        if variable.startswith(f"{_VARIABLE}_") and not variable.startswith(f"{_VARIABLE}__")
    ]
    if problems:
        raise _error(problems)


@cache
def rules() -> dict[str, Rule]:
    """Return the rules of all settings, by name, in the order of the YAML."""
    schema = _read(_SCHEMA)["properties"][ROOT]["properties"]
    return {
        name: _rule(name, default, schema[section]["properties"][own])
        for name, default in _leaves(_read(_DEFAULTS)[ROOT])
        for section, _, own in [name.partition(".")]
    }


def sections() -> dict[str, str]:
    """Return what the sections are for, by name."""
    schema = _read(_SCHEMA)["properties"][ROOT]["properties"]
    return {name: section["description"].strip() for name, section in schema.items()}


def _rule(name: str, default: Any, schema: Mapping[str, Any]) -> Rule:
    types = schema["type"]
    return Rule(
        name,
        default,
        types=(types,) if isinstance(types, str) else tuple(types),
        form=schema.get("format", ""),
        enum=tuple(schema.get("enum", ())),
        least=schema.get("minimum"),
        above=schema.get("exclusiveMinimum"),
        most=schema.get("maximum"),
        description=schema["description"].strip(),
        read=schema["x-read"],
    )


def _read(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_READER)  # noqa: S506 - a safe one


def _leaves(given: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is set, by name; sections that are empty set nothing."""
    if not isinstance(given, Mapping):
        yield name, given
        return
    for key, value in given.items():
        # Variables of the environment cannot have a hyphen; to Dask they are the same.
        path = f"{name}.{key}".lstrip(".").replace("_", "-")
        if value is not None or path.count("."):
            yield from _leaves(value, path)


def _problem(rule: Rule, given: Any) -> str:
    """Return what is wrong with a setting; nothing where it is right."""
    try:
        _parsed(rule.name, given)
    except (TypeError, ValueError):
        example = ""
        if "string" in rule.types and not rule.form and not rule.enum and given is not None:
            example = "; put it in quotes, and in the environment in two kinds of them"
        where = _origin(rule.name, given)
        default = "null" if rule.default is None else rule.default
        return (
            f"{ROOT}.{rule.name} is {given!r}, expected {rule.expected}{example}; it comes from "
            f"{where}: correct it there, or take it away for the default, {default}"
        )
    return ""


@lru_cache(maxsize=1024, typed=True)
def _parsed(name: str, given: Any) -> Any:
    """Return what a setting means.

    Raises
    ------
    TypeError, ValueError
        Where it makes no sense; a list or a mapping cannot even be looked up in this cache.
    """
    rule = rules()[name]
    if given is None and "null" in rule.types:
        return None
    value = _value(rule, given)
    if isinstance(value, str):
        if not value or (rule.enum and value not in rule.enum):
            raise ValueError(value)
        return value
    above, least, most = rule.above, rule.least, rule.most
    fits = math.isfinite(value) and (above is None or value > above)
    if not fits or (least is not None and value < least) or (most is not None and value > most):
        raise ValueError(value)
    return value


def _value(rule: Rule, given: Any) -> str | float:
    if rule.form == "duration" and given is not None:
        return round(seconds_of(given, rule.name, least=-math.inf) or 0.0, 9)
    if rule.form == "byte-size" and isinstance(given, str):
        from dask.utils import parse_bytes

        if not given[:1].isdigit():  # Dask would take a bare unit for one of that unit
            raise ValueError(given)
        try:
            return int(parse_bytes(given))
        except OverflowError as error:  # 1e400 and the like
            raise ValueError(given) from error
    if isinstance(given, str) and "string" in rule.types and not rule.form:
        return given
    is_number = isinstance(given, Real) and not isinstance(given, bool)
    if not is_number or not {"integer", "number"} & {*rule.types}:
        raise TypeError(given)
    if "integer" not in rule.types:
        return float(given)
    if isinstance(given, Integral) or (isinstance(given, float) and given.is_integer()):
        return int(given)
    raise TypeError(given)


def _unknown(name: str, given: Any) -> str:
    if not name:
        return f"{ROOT} is {given!r}, expected its sections: {', '.join(sections())}"
    known = rules()
    if name in sections():
        those = ", ".join(n.partition(".")[2] for n in known if n.startswith(f"{name}."))
        return (
            f"{ROOT}.{name} is {given!r}, expected a section with some of {those}; it comes from "
            f"{_origin(name, given)}"
        )
    own = name.rpartition(".")[2]
    near = get_close_matches(name, known, n=1, cutoff=0.75) or [
        n for n in known if n.rpartition(".")[2] in get_close_matches(own, [n.rpartition(".")[2]])
    ]
    hint = f" (did you mean {ROOT}.{near[0]}?)" if near else ""
    return (
        f"{ROOT}.{name} is no setting{hint}; it comes from {_origin(name, given)}: correct it "
        f"there, or take it away"
    )


def _variable_of(name: str) -> str:
    return f"{_VARIABLE}__{name.replace('.', '__').replace('-', '_').upper()}"


def _origin(name: str, given: Any) -> str:
    """Return where a setting comes from, as far as that can be found out."""
    variable = _variable_of(name)
    if variable in os.environ and dask.config.interpret_value(os.environ[variable]) == given:
        return f"{variable} in the environment"
    try:
        files = list(dask.config.collect_yaml(dask.config.paths, return_paths=True))
    except (OSError, ValueError):  # changed since they were read; then we do not know
        files = []
    for path, content in reversed(files):
        those = dict(_leaves(content.get(ROOT, {}) if isinstance(content, Mapping) else {}))
        if name in those and those[name] == given:
            return str(path)
    if "DASK_INTERNAL_INHERIT_CONFIG" in os.environ:  # Dask passes it to workers it starts
        return "the process that started this one, or dask.config.set"
    return "dask.config.set, in this process"


def _error(problems: list[str]) -> ConfigurationError:
    page = "all settings are in docs/configuration.md of the package"
    return ConfigurationError("\n".join([*problems, page]))


def _register() -> None:
    """Make the defaults known to Dask, and put them where users look, as Dask's packages do."""
    dask.config.update_defaults(_read(_DEFAULTS))
    dask.config.ensure_file(source=str(_DEFAULTS))


_register()
