"""The same questions asked of a published law: a prediction about causal models, never mixed with what was measured.

Busbridge et al. 2025 (arXiv 2502.08606), equations 8 and 9, with their coefficients: fitted on causal models of 143M to
12.6B parameters; not validated for masked language models or feature losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.laws import chinchilla_gamma
from budgetlab.laws.distillation import PUBLISHED, forward_flops_per_token, student_loss

_GRID = 96
_LARGEST_TEACHER = 300.0
"""A teacher is looked for up to so many times the student's size, and from a third of it."""
BASIS = f"predicted by {PUBLISHED.name}: {PUBLISHED.scope}"


def published_map(
    num_params: Sequence[float],
    total_flops: Sequence[float],
    students_per_teacher: Sequence[float],
    *,
    seq_len: int,
    vocab_size: int,
    aspect_ratio: float,
    inference: bool = True,
) -> pd.DataFrame:
    """Map distillation against pretraining as the published law predicts it, with the best split for every cell.

    For each student size, all-in compute of one student and number of students that share the teacher, the teacher's
    size and tokens are chosen on a grid to make the student's loss smallest; the reference spends everything on itself.

    Parameters
    ----------
    num_params
        Non-embedding parameters of the students.
    total_flops
        All-in compute of one student: its training, the teacher's forward passes, and a share of its pretraining.
    students_per_teacher
        How many share the pretraining; infinite where it is free.
    seq_len, vocab_size, aspect_ratio
        Of `laws.distillation.forward_flops_per_token`, for student and teacher.
    inference
        Whether the teacher's forward passes are charged (scenarios 2 and 4 of the paper's table 2) or stored and
        reused for nothing (1 and 3).

    Returns
    -------
    DataFrame
        `num_params`, `total_flops`, `students_per_teacher`, `student_loss`, `supervised_loss`, `difference` (positive
        when distilling is better), `answer` ("distil" or "pretrain"; no interval is published for it),
        `teacher_num_params`, `teacher_tokens`, `teacher_loss`, `tokens`, `supervised_tokens`, `pretraining_share`,
        `inference_share`, `student_share` of the compute, `at_edge` (the best teacher lies at the end of the grid),
        `basis`.

    Raises
    ------
    CallerError
        For an amount that is not above zero.

    References
    ----------
    Busbridge et al. 2025, arXiv 2502.08606, equations 8 to 10, appendix H.1.
    """
    given = {"num_params": num_params, "total_flops": total_flops, "students_per_teacher": students_per_teacher}
    for name, values in given.items():
        if not len(values) or not all(value > 0 for value in values):
            raise CallerError(f"published map, {name} = {list(values)}", "not above zero", "give positive amounts")
    shape = {"seq_len": seq_len, "vocab_size": vocab_size, "aspect_ratio": aspect_ratio}
    rows = []
    for size in num_params:
        own = 3 * float(forward_flops_per_token(size, **shape))  # type: ignore[arg-type]
        teachers = np.geomspace(size / 3, size * _LARGEST_TEACHER, _GRID)[:, None]
        forward = forward_flops_per_token(teachers, **shape)  # type: ignore[arg-type]
        for total in total_flops:
            supervised = float(chinchilla_gamma.PUBLISHED.predict({"num_params": size, "tokens": total / own}))
            for k in students_per_teacher:
                rows.append(
                    {"num_params": size, "total_flops": total, "students_per_teacher": k}
                    | _best(size, total, k, own, teachers, forward, inference)
                    | {"supervised_loss": supervised, "supervised_tokens": total / own}
                )
    found = pd.DataFrame(rows)
    found["difference"] = found["supervised_loss"] - found["student_loss"]
    found["answer"] = np.where(found["difference"] > 0, "distil", "pretrain")
    found["basis"] = BASIS
    return found


def _best(
    size: float, total: float, k: float, own: float, teachers: np.ndarray, forward: np.ndarray, inference: bool
) -> dict[str, float | bool]:
    """Choose the teacher's size and tokens, and hence the student's tokens, on a grid."""
    free = math.isinf(k)
    if free:
        # A teacher that costs nothing but its forward passes: as many tokens as a compute-optimal one ever saw.
        teacher_tokens = 20.0 * teachers * np.geomspace(0.05, 50.0, _GRID)[None]
        pretraining = np.zeros_like(teacher_tokens)
    else:
        pretraining = total * np.linspace(0.002, 0.99, _GRID)[None] * np.ones_like(teachers)
        teacher_tokens = pretraining * k / (3 * forward)
    tokens = (total - pretraining) / (own + (forward if inference else 0.0))
    teacher_loss = chinchilla_gamma.PUBLISHED.predict({"num_params": teachers, "tokens": teacher_tokens})
    loss = student_loss(size, tokens, teacher_loss)
    row, column = np.unravel_index(int(np.argmin(loss)), loss.shape)
    spent = float(tokens[row, column]) * float(forward[row, 0]) if inference else 0.0
    return {
        "student_loss": float(loss[row, column]), "teacher_num_params": float(teachers[row, 0]),
        "teacher_tokens": float(teacher_tokens[row, column]), "teacher_loss": float(teacher_loss[row, column]),
        "tokens": float(tokens[row, column]), "pretraining_share": float(pretraining[row, column]) / total,
        "inference_share": spent / total, "student_share": float(tokens[row, column]) * own / total,
        "at_edge": bool(row in (0, _GRID - 1) or column in (0, _GRID - 1)),
    }  # fmt: skip


def published_gap(num_params: float, tokens: float, teacher_losses: Sequence[float]) -> pd.DataFrame:
    """Predict one student's loss under teachers of different quality: where a better one teaches worse.

    Parameters
    ----------
    num_params, tokens
        Of the student.
    teacher_losses
        In nats per token, above the published floor.

    Returns
    -------
    DataFrame
        `teacher_loss`, `student_loss`, `best` (the teacher with the lowest), `basis`; best teacher first. A student
        loss that rises again towards the first rows is the capacity gap.
    """
    floor = float(chinchilla_gamma.PUBLISHED.params["E"])
    wrong = [loss for loss in teacher_losses if not loss > floor]
    if wrong or not len(teacher_losses):
        raise CallerError(f"published gap, teacher losses {list(teacher_losses)}", f"not above the floor {floor:g}",
                          "give losses that a teacher can have")  # fmt: skip
    losses = np.sort(np.asarray(teacher_losses, dtype=float))
    predicted = student_loss(num_params, tokens, losses)
    return pd.DataFrame({"teacher_loss": losses, "student_loss": predicted, "best": predicted == predicted.min(),
                         "basis": BASIS})  # fmt: skip
