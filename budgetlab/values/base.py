"""What every value shares: frozen, strict about its keys, and hashable by content."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from budgetlab.errors import CallerError
from budgetlab.units import parse_count


def _count(raw: object) -> int:
    if not isinstance(raw, str | int | float):
        raise CallerError(f"count = {raw!r}", "not a number of things", 'write 8192 or "0.3M"')
    return parse_count(raw)


Count = Annotated[int, BeforeValidator(_count)]
"""A whole number above zero, written 8192, "0.3M" or "2.6B tokens"."""

CountOrZero = Annotated[int, BeforeValidator(lambda raw: 0 if raw == 0 else _count(raw))]
"""The same, or 0."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@+~-]*$", max_length=100)]
"""Of a study, model, arm or task: it becomes part of file names, of figures and of LaTeX."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""Of random numbers, as torch and numpy take them."""

Interval = tuple[float, float]
"""[low, high] at the value's `interval_level`."""


class Value(BaseModel):
    """A frozen value: unknown keys are refused, the unit is the last word of a field's name."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        serialize_by_alias=True,
        validate_by_name=True,
        validate_by_alias=True,
    )


def content_hash(*parts: Value | Any) -> str:
    """Hash values by content (SHA-256, 16 hex digits): equal content, equal key, whatever the process."""
    plain = [part.model_dump(mode="json") if isinstance(part, Value) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
