"""Checks annotations while the tests run: `--jaxtyping-packages` in pyproject.toml names `checked`."""

import typing

from beartype import BeartypeConf, beartype
from flax.linen import linear

# Flax annotates a field of nn.Dense with this protocol, which isinstance() refuses as it stands.
typing.runtime_checkable(linear.PromoteDtypeFn)

# PEP 484: an int will do where a float is annotated.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
