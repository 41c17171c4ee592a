"""One schema for tables of properties that were written at different moments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce

import pyarrow as pa

from atomizer_dask.store.arrow import common_form
from atomizer_dask.store.tables import OURS, facts_of


def with_notes(schema: pa.Schema) -> list[tuple[str, str, str]]:
    """Return name, type and facts of each field: these decide how a table is read."""
    return [(f.name, str(f.type), json.dumps(facts_of(f), sort_keys=True)) for f in schema]


def common_schema(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    """Return the schema in which tables of either can be written."""
    names = [*one.names, *(name for name in other.names if name not in one.names)]
    # Outputs stand before the facts about the electron, which every table has.
    facts = [name for name in names if not _is_ours(one, name) and not _is_ours(other, name)]
    names = [*facts[:1], *(name for name in names if name not in facts), *facts[1:]]
    fields = []
    for name in names:
        if name not in one.names or name not in other.names:
            fields.append((one if name in one.names else other).field(name))
            continue
        a, b = one.field(name), other.field(name)
        if a.type == b.type and facts_of(a) == facts_of(b):
            fields.append(a)
            continue
        facts_a = facts_of(a)
        kind, note = common_form.common(
            (a.type, facts_a.get("note", {})), (b.type, facts_of(b).get("note", {}))
        )
        ours = json.dumps({**facts_a, "note": note}, sort_keys=True)
        fields.append(pa.field(name, kind, a.nullable, metadata={OURS: ours}))
    return pa.schema(fields, metadata=one.metadata)


def _is_ours(schema: pa.Schema, name: str) -> bool:
    return name in schema.names and bool(facts_of(schema.field(name)))


def recoded(table: pa.Table, target: pa.Schema, allow_pickle: bool) -> pa.Table:
    """Return a table in a schema that `common_schema` gave; columns that it lacks are null."""
    arrays = []
    for field in target:
        if field.name not in table.schema.names:
            arrays.append(pa.nulls(len(table), field.type))
            continue
        here, column = table.schema.field(field.name), table.column(field.name)
        note, to_note = facts_of(here).get("note", {}), facts_of(field).get("note", {})
        if here.type == field.type and note == to_note:
            arrays.append(column.combine_chunks())
        else:
            arrays.append(
                common_form.recode(column, note, field.type, to_note, allow_pickle=allow_pickle)
            )
    return pa.Table.from_arrays(arrays, schema=target).replace_schema_metadata(
        table.schema.metadata
    )


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Return tables end to end, in one schema."""
    metadata = tables[0].schema.metadata
    tables = [table.replace_schema_metadata(metadata) for table in tables]
    if len({str(with_notes(table.schema)) for table in tables}) > 1:
        target = reduce(common_schema, (table.schema for table in tables))
        tables = [recoded(table, target, True) for table in tables]
    return pa.concat_tables(tables).combine_chunks().unify_dictionaries()
