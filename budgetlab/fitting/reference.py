"""Which arm an arm is compared with, and which one the ratios of a whole table refer to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from budgetlab.errors import unknown_name


def reference_arm(
    arm: str | None, arms: Iterable[str], asked: str | None = None, students: Mapping[str, str] | None = None
) -> str | None:
    """Return what an arm is compared with, or where it is None a whole table; None where there is nothing.

    Plain pretraining (`no_kd`, or what is asked for) of the same student and, where there are several, the same
    further words in its name; else the only reference. Without any the first arm serves: a comparison needs something
    to compare with.
    """
    arms, word, known = list(arms), asked or "no_kd", students or {}
    family = reference_family(arms, asked)
    if asked is not None and not family:
        raise unknown_name("arm", asked, arms, f"reference = {asked!r}")
    if arm is None:
        return next(iter([*family, *arms]), None)
    if word in arms:
        return word

    def student(name: str) -> str:  # of an arm such as `minilm@small+teacher`
        return known.get(name, name.partition("@")[2].partition("+")[0])

    same = [name for name in family if student(name) == student(arm)]
    alike = [name for name in same if name.partition("+")[2] == arm.partition("+")[2]]
    if same:
        return (alike or same)[0]
    return None if arm in family else (family or arms)[0]


def reference_family(arms: Iterable[str], asked: str | None = None) -> list[str]:
    """Return the arms that are the reference, one per student: plain pretraining, unless another is asked for."""
    word = (asked or "no_kd").partition("@")[0].partition("+")[0]
    return [name for name in arms if name.partition("@")[0].partition("+")[0] == word]


def base_arm(arms: Iterable[str]) -> str | None:
    """Return the arm that the ratios of a whole table refer to."""
    return reference_arm(None, arms)
