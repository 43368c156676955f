"""Which teachers can be kept on disk, what of them, and why others cannot."""

from __future__ import annotations

from budgetlab.errors import CallerError
from budgetlab.strategies.base import Strategy
from budgetlab.values import Arm, Kept, ModelSpec, TopK


def kept_of(arm: Arm, strategy: Strategy) -> Kept | None:
    """Return what an arm's teacher is reduced to, by `cache` or by the strategy's own setting; None: to nothing."""
    if strategy.keeps_teacher and strategy.largest_logits is not None:
        return TopK(k=strategy.largest_logits)
    return arm.kept


def keeps_all_positions(arm: Arm, strategy: Strategy, student: ModelSpec, teacher: ModelSpec) -> bool:
    """Whether all positions of a sequence are kept, or those of its masks alone."""
    return arm.teacher_reads == "unmasked" or strategy.teacher_needs(student, teacher).logits == "all"


def same_for_all_seeds(arm: Arm) -> bool:
    """Whether what the teacher reads has nothing to do with a run's masks."""
    return arm.recipe.causal or arm.teacher_reads == "unmasked"


def check_cache(arm: Arm, strategy: Strategy, student: ModelSpec, teacher: ModelSpec | None, masking: str) -> None:
    """Refuse settings of the cache that cannot work, from what the study says alone.

    Raises
    ------
    CallerError
        With what was asked, what is wrong and what to do.
    """
    where = f"arms.{arm.name}"
    asked = f"{where}.strategy.cached = true" if strategy.keeps_teacher else f"{where}.cache"
    if arm.teacher_reads == "unmasked" and (arm.recipe.causal or teacher is None or not strategy.uses_teacher):
        wrong = "there is no teacher" if teacher is None else "no word is hidden from it"
        raise CallerError(f'{where}.teacher_reads = "unmasked"', wrong, "leave it out")
    kept = kept_of(arm, strategy)
    if kept is None:
        return
    if teacher is None or not strategy.uses_teacher:
        raise CallerError(asked, f"{arm.strategy.name} uses no teacher", "leave it out")
    if arm.cache != "never" and (strategy.keeps_teacher or strategy.largest_logits is not None):
        raise CallerError(asked, "its strategy has a top_k of its own", "set one of them")
    if why := why_not_kept(arm, strategy, student, teacher):
        raise CallerError(asked, why, 'set cache = "never", or choose a strategy that compares logits alone')
    words = min(student.vocab_size or 0, teacher.vocab_size or 0)
    if isinstance(kept, TopK) and words and kept.k > words:
        raise CallerError(f"{asked}: k = {kept.k}", f"the vocabulary has {words} entries", "lower it")
    if kept.uniforms and strategy.in_teacher != "linear":
        wrong = "draws are unbiased only where the loss is linear in the teacher's probabilities"
        raise CallerError(f'{asked}: kind = "sampled" with {arm.strategy.name}', wrong, 'use kind = "top_k"')
    if kept.leaves_none and strategy.in_teacher == "unbounded":
        wrong = "the loss is infinite where the teacher gives a word no probability"
        raise CallerError(asked, wrong, 'set its tail to "other", "uniform" or "zero"')
    if arm.cache != "auto" and masking != "static" and not same_for_all_seeds(arm):
        wrong = "masks are drawn anew in every pass, so that no answer is read twice"
        remedy = 'set corpus.masking = "static"'
        remedy += "" if strategy.keeps_teacher else ', or teacher_reads = "unmasked"'
        raise CallerError(asked, wrong, remedy)
    if arm.recipe.execute == "everything":
        raise CallerError(asked, 'recipe.execute = "everything" asks the teacher at every step', "choose one of them")


def why_not_kept(arm: Arm, strategy: Strategy, student: ModelSpec, teacher: ModelSpec) -> str | None:
    """Say what keeps a teacher's logits from being all that its strategy reads; None where nothing does."""
    needs = strategy.teacher_needs(student, teacher)
    if needs.logits == "none":
        return f"{arm.strategy.name} reads no logits of the teacher"
    if needs.hidden or needs.qkv or needs.scores or strategy.reads_unmasked:
        return f"{arm.strategy.name} reads more of the teacher than its logits"
    return None
