"""Which arm an arm is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from budgetlab.errors import unknown_name


def reference_arm(
    arm: str, arms: Iterable[str], asked: str | None = None, students: Mapping[str, str] | None = None
) -> str | None:
    """Return what an arm is compared with: the reference of the same student, or the only reference."""
    arms = list(arms)
    word = asked or "no_kd"
    family = reference_family(arms, asked)
    if asked is not None and not family:
        raise unknown_name("arm", asked, arms, f"reference = {asked!r}")
    if word in arms:
        return word
    known = students or {}
    own = known.get(arm, _student_part(arm))
    same = [name for name in family if known.get(name, _student_part(name)) == own]
    taught = [name for name in same if name.partition("+")[2] == arm.partition("+")[2]]
    if same:
        return (taught or same)[0]
    if arm in family:
        return None
    # Without a reference arm the first one serves: a comparison needs something to compare with.
    return family[0] if family else arms[0]


def reference_family(arms: Iterable[str], asked: str | None = None) -> list[str]:
    """Return the arms that are the reference, one per student: plain pretraining, unless another is asked for."""
    word = (asked or "no_kd").partition("@")[0].partition("+")[0]
    return [name for name in arms if name.partition("@")[0].partition("+")[0] == word]


def base_arm(arms: Iterable[str]) -> str | None:
    """Return the arm that the ratios of a whole table refer to: the first reference, else the first arm."""
    names = list(arms)
    return next(iter([*reference_family(names), *names]), None)


def _student_part(arm: str) -> str:
    """Student in the name of an arm such as `minilm@small+teacher`."""
    return arm.partition("@")[2].partition("+")[0]
