"""Writes the reference page of all settings, from the YAML of defaults and its schema."""

from itertools import groupby
from pathlib import Path

import yaml

import atomizer_dask
from atomizer_dask.config import Rule, rules, sections

HERE = Path(atomizer_dask.__file__).parent
PAGE = HERE / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

This page is made from `atomizer.yaml` and `atomizer-schema.yaml` by `make docs`.

Settings go through [Dask's configuration](https://docs.dask.org/en/stable/configuration.html),
under `atomizer:`. In the order in which one overrides the other:

1. arguments of functions and options of commands;
2. `dask.config.set({"atomizer.map.timeout": "30s"})` in Python, for the process or a `with` block;
3. the environment: `DASK_ATOMIZER__MAP__TIMEOUT=30s`, with two underscores before the section and
   before the name, one in place of each hyphen; quote texts that look like numbers, `'"7"'`;
4. files: in the folder that `DASK_CONFIG` names; `~/.config/dask/atomizer.yaml`, where (or in the
   former) the defaults are put commented out when the package is first imported; `etc/dask` of the
   Python environment, for a shared installation; `/etc/dask`, for a machine;
5. the defaults below.

A change acts on what is made afterwards: a run, a conductor, a panel. What is under way keeps what
it was made with. Settings are checked when an `Atomizer`, a conductor or a command is made or
started: a name that does not exist, or a value that makes no sense, is a `ConfigurationError` that
says which, what was expected, and which file or variable it comes from.

Durations are seconds, or texts such as `30s`, `250ms`, `2 minutes`. Sizes are bytes, or texts such
as `64 KiB`, `6 MiB`. A setting that is read *on the workers* counts there: set it in a file that
they read too, or export its variable in the job script (`job-script-prologue` of dask-jobqueue). A
local cluster's workers get the settings of the process that starts it.

## All of them

```yaml
"""


def page() -> str:
    """Return the page."""
    defaults = (HERE / "atomizer.yaml").read_text(encoding="utf-8")
    parts = [INTRODUCTION + defaults[defaults.index("atomizer:") :] + "```\n"]
    for section, those in groupby(rules().values(), key=lambda rule: rule.name.partition(".")[0]):
        parts += [f"## {section}\n", _lines(sections()[section]) + "\n", *map(_entry, those)]
    return "\n".join(parts)


def _entry(rule: Rule) -> str:
    default = yaml.safe_dump(rule.default).removesuffix("\n...\n").strip()
    return (
        f"### `atomizer.{rule.name}`\n\n"
        f"Default `{default}`; {rule.expected}. Read {rule.read}.\n\n"
        f"{_lines(rule.description)}\n"
    )


def _lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
