"""The private names of cloudpickle that this package uses, besides what `Pickler` inherits.

Written against version 3.1. Importing this module fails where one of the names is gone.
"""

from __future__ import annotations

from cloudpickle import cloudpickle

lookup = cloudpickle._lookup_module_and_qualname
is_registered_by_value = cloudpickle._is_registered_pickle_by_value
globals_of = cloudpickle._extract_code_globals
reduce_class = cloudpickle._dynamic_class_reduce
make_type_variable = cloudpickle._make_typevar
parts_of_type_variable = cloudpickle._decompose_typevar
