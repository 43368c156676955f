"""What every value shares: frozen, strict about its keys, and hashable by content; the bounded types of fields."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from budgetlab.errors import CallerError
from budgetlab.units import parse_count

SCHEMA_VERSION = 2
"""Of the files that hold values. 1: before files said so, when a plan could have one table of prices."""


def _count(raw: object) -> int:
    if not isinstance(raw, str | int | float):
        raise CallerError(f"count = {raw!r}", "not a number of things", 'write 8192 or "0.3M"')
    return parse_count(raw)


Count = Annotated[int, BeforeValidator(_count)]
"""A whole number above zero, written 8192, "0.3M" or "2.6B tokens"."""
CountOrZero = Annotated[int, BeforeValidator(lambda raw: 0 if raw == 0 else _count(raw))]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@+~-]*$", max_length=100)]
"""Of a study, model, arm or task: it becomes part of file names, of figures and of LaTeX."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""Of random numbers, as torch and numpy take them."""


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds {list(seeds)} must be distinct")
    return seeds


SeedsOrNone = Annotated[tuple[Seed, ...], Field(max_length=1000), AfterValidator(_distinct)]
"""Seeds that are all different, none where that means others."""
Seeds = Annotated[SeedsOrNone, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Interval = tuple[float, float]
"""[low, high] at the value's `interval_level`."""


def passed_over(*names: str) -> Any:
    """Make a validator of a model that passes over keys of earlier schemas, which nothing reads any more."""

    def without(fields: Any) -> Any:
        return {key: value for key, value in fields.items() if key not in names} if isinstance(fields, dict) else fields

    return model_validator(mode="before")(without)


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
    left_out_at_default: ClassVar[frozenset[str]] = frozenset()
    """Fields that came later: at their default they are not written, so that what was hashed before keeps its hash."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written = handler(self)
        for name in self.left_out_at_default:
            if getattr(self, name) == type(self).model_fields[name].default:
                written.pop(name, None)
        return written


class Record(Value):
    """A value that files hold: it says which schema it was written with, and those of earlier ones are read."""

    schema_version: int = SCHEMA_VERSION

    @model_validator(mode="before")
    @classmethod
    def _as_written_now(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        written = fields.get("schema_version", 1)
        if isinstance(written, int) and written > SCHEMA_VERSION:
            newer = f"schema_version {written} is newer than this program's {SCHEMA_VERSION}"
            raise ValueError(f"{newer}; update budgetlab")
        return {**cls.upgraded(fields), "schema_version": SCHEMA_VERSION}

    @classmethod
    def upgraded(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of an earlier schema as they are written now."""
        return fields


def content_hash(*parts: Value | Any) -> str:
    """Hash values by content (SHA-256, 16 hex digits): equal content, equal key, whatever the process."""
    plain = [part.model_dump(mode="json") if isinstance(part, Value) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
