import json
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from stored_columns import ANY, row_facts

from atomizer_dask.store.arrow.exact_json import InexactError, from_json, to_json


@given(ANY)
def test_values_come_back(value):
    assert row_facts(from_json(to_json(value))) == row_facts(value)


def test_what_json_knows_is_plain():
    value = {"a": [1, 2.5, None, True, "ä"], "$b": {}}
    assert to_json(value) == '{"a":[1,2.5,null,true,"ä"],"$b":{}}'
    assert json.loads(to_json({"x": (1, Decimal("1.50"))})) == {
        "x": {"$tuple": [1, {"$Decimal": "1.50"}]}
    }


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_timestamps_keep_unit_and_zone(zone):
    for moment in (pd.Timestamp("2026-10-25 00:30:00.123456789"), pd.Timestamp("2026-01-01")):
        zoned = moment.tz_localize("UTC").tz_convert(zone) if zone else moment
        assert row_facts(from_json(to_json(zoned))) == row_facts(zoned)


def test_arrays_of_objects_keep_their_shape():
    value = np.array([["a", (1,)], [None, datetime(2026, 1, 1, tzinfo=UTC)]], dtype=object)
    assert row_facts(from_json(to_json(value))) == row_facts(value)


def test_what_has_no_exact_json_is_told():
    culprit = {1}
    for value in (culprit, [1, (culprit,)], {"a": {"b": culprit}}):
        with pytest.raises(InexactError) as caught:
            to_json(value)
        assert caught.value.args == (culprit,)
