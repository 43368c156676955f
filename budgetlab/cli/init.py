"""The verb init: a commented study from a few answers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import typer
from typer import Argument, Option

from budgetlab.cli.options import Options
from budgetlab.errors import CallerError

_STRATEGIES = {
    "masked": ("vanilla_kd", "minilm", "tinybert"),
    "causal": ("kd", "hidden"),
}


def init(
    path: Path = Argument(Path("study.toml"), help="File to write.", metavar="FILE"),
    teacher: str | None = Option(None, help="LAYERSxWIDTH, a folder of weights, or a hub id.", metavar="MODEL"),
    student: str | None = Option(None, help="LAYERSxWIDTH.", metavar="SHAPE"),
    family: str | None = Option(None, help="bert, roberta, gpt2, llama, qwen3, ..."),
    text: list[str] = Option((), help="File or pattern to train on, repeated; else documentation.", metavar="FILE"),
    heldout: list[str] = Option((), help="File or pattern that is held out, repeated.", metavar="FILE"),
    budget: list[str] = Option((), help='Such as "8 gpu-hours" or "1e15 flops", repeated.', metavar="AMOUNT"),
    dry_run: bool = Option(False, "--dry-run", help="Print the study and write nothing."),
    *,
    options: Options,
) -> None:
    """Write a study to begin with; on a terminal, what is not given is asked for."""
    from budgetlab.values.model_specs import CAUSAL_FAMILIES

    if path.exists() and not dry_run:
        raise CallerError(f"init {path}", "the file is there already", "name another, or remove it")
    family = family or _ask("family of the models (bert, llama, ...)", "bert")
    student = student or _ask("student, LAYERSxWIDTH", "4x128")
    teacher = teacher or _ask("teacher: LAYERSxWIDTH, a folder or a hub id", "8x128")
    amounts = list(budget) or [_ask("budget of one run", "1e13 flops")]
    if bool(text) != bool(heldout):
        lacking = "--heldout" if text else "--text"
        raise CallerError("init with text of your own", f"no {lacking}", f"add {lacking} FILE, read by no run")
    kind = "causal" if family in CAUSAL_FAMILIES else "masked"
    written = _study(path.stem, family, kind, student, teacher, text, heldout, amounts)
    _check(written, path)
    if dry_run:
        print(written, end="")
        return
    path.write_text(written, encoding="utf-8")
    options.print(lambda: {"study": str(path)}, list, f"{path} is written; next: budgetlab plan {path}")


def _ask(question: str, default: str) -> str:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return default
    return str(typer.prompt(question, default=default))


def _check(written: str, path: Path) -> None:
    """Load the study from beside where it will be, so that relative paths are what they will be."""
    from budgetlab.studies import load_study

    trial = path.with_name(f".{path.name}.trial")
    try:
        trial.write_text(written, encoding="utf-8")
        load_study(trial)
    finally:
        trial.unlink(missing_ok=True)


def _shape(asked: str, role: str, family: str) -> str | None:
    """Write LAYERSxWIDTH as the lines of a model; None where it is no shape."""
    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,5})", asked.strip())
    if found is None:
        return None
    layers, width = map(int, found.groups())
    sizes = (64, 32, 16, 8) if width >= 512 else (32, 16, 8)
    head = next((size for size in sizes if width % size == 0 and width >= 2 * size), None)
    if head is None:
        raise CallerError(f"--{role} {asked}", "its width is no multiple of 8 from 16 on", "write such as 4x128")
    gated = family not in ("bert", "roberta", "electra", "gpt2")
    inner = -(-8 * width // 3 // 8) * 8 if gated else 4 * width
    return f"num_layers = {layers}\nhidden_size = {width}\nnum_heads = {width // head}\nintermediate_size = {inner}\n"


def _study(
    name: str, family: str, kind: str, student: str, teacher: str, text: list[str], heldout: list[str],
    budget: list[str],
) -> str:  # fmt: skip
    of_student, of_teacher = _shape(student, "student", family), _shape(teacher, "teacher", family)
    if of_student is None:
        raise CallerError(f"--student {student}", "not LAYERSxWIDTH", "write such as 4x128")
    if text:
        corpus = f'source = "text"\ntrain = {json.dumps(text)}\nheldout = {json.dumps(heldout)}'
    else:
        corpus = 'source = "docs"                     # documentation of installed packages; or "text", train, heldout'
    what = (
        f'weights = {json.dumps(teacher)}\n# pretrained_for = "10B tokens"    # what they cost, where that is charged\n'
        if of_teacher is None
        else f'family = "{family}"\n{of_teacher}'
        'pretrain = { tokens = "8M", seed = 0 }   # trained here; weights = "FOLDER" for one that you have\n'
    )
    arms = "\n".join(
        f'[arms.{strategy}]\nstrategy = "{strategy}"\nstudent = "student"\nteacher = "teacher"\n'
        for strategy in _STRATEGIES[kind]
    )
    return f"""\
# Is the student better distilled or pretrained on more tokens? Change what is here, then: budgetlab plan FILE.
name = "{re.sub(r"[^A-Za-z0-9_-]", "_", name) or "study"}"
seeds = [0, 1, 2]                   # five resolve more: budgetlab plan FILE --power 0.05

[corpus]
{corpus}
tokenizer = {json.dumps(teacher) if of_teacher is None else "{ train = 8192 }"}

[recipe]                            # shared by all arms
seq_len = 64
batch_tokens = 1024
learning_rate = 1e-3                # [tuning] learning_rate = [...] gives every arm its own
warmup_tokens = 65536
dropout = 0.0

[models.student]
family = "{family}"
{of_student}
[models.teacher]
{what}
[arms.no_kd]
strategy = "no_kd"
student = "student"

{arms}
[plan]
match = "{"required_flops" if all("flop" in item.lower() for item in budget) else "device_seconds"}"
budgets = {json.dumps(budget)}          # several make curves
teacher_charge = "inference"        # none, inference, pretraining, amortised:K

[evaluate]
tasks = []                          # GLUE: source = "glue", tasks = ["sst2", ...]
"""
