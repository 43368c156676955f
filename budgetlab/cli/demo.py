"""The verb demo: a whole study on text and a teacher that come with budgetlab; and the making of that teacher."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from budgetlab.cli.options import Options
from budgetlab.cli.verbs import show_report
from budgetlab.errors import CallerError

if TYPE_CHECKING:
    from budgetlab.cli.open_study import OpenStudy

_AS_RECORDED_NATS = 0.05


def demo(
    quick: bool = typer.Option(False, "--quick", help="One seed and two budgets, in a minute or two."),
    causal: bool = typer.Option(False, "--causal", help="Next-token models in the place of masked ones."),
    train_teacher: bool = typer.Option(False, "--train-teacher", help="Train the teacher that comes with budgetlab."),
    *,
    options: Options,
) -> None:
    """Compare four strategies at three matched budgets, on text that this machine already has."""
    from budgetlab.study_tables import PRESETS  # with pydantic, which --help does without

    if quick and causal:
        raise CallerError("demo --quick --causal", "there is no short causal demo", "leave one of them out")
    name = "causal_demo" if causal else "demo_quick" if quick else "demo"
    shipped = PRESETS / ("causal_demo_teacher" if causal else "demo_teacher")
    record = _checked(shipped)
    opened = options.open(f"presets/{name}.toml")
    if train_teacher:
        opened.use_teacher("teacher", _train_again(options.open(f"presets/{shipped.name}.toml"), record))
    show_report(opened.study_through(depth="quick"), options)


def _checked(shipped: Path) -> dict[str, Any]:
    """Return the record of a shipped teacher, once its files are those that were recorded."""
    record = json.loads((shipped / "record.json").read_text(encoding="utf-8"))
    for name, sha256 in record["sha256"].items():
        path = shipped / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise CallerError(f"the teacher in {shipped}", f"{name} is not what was shipped", "install budgetlab again")
    return record


def _train_again(opened: OpenStudy, record: dict[str, Any]) -> Path:
    """Train a shipped teacher here, say what differs from the record, and return its folder."""
    corpus = opened.corpus()
    plan = opened.plan(opened.profile(to_run=True, depth="quick"))
    records = opened.run(plan)
    done = next((found for found in records if found.kind == "rung" and found.status == "complete"), None)
    if done is None:
        raise CallerError(f"demo --train-teacher, {opened.study.name}", "its run failed", "see the reason above")
    scores = opened.evaluate(plan, records)
    nats = next(s.value for s in scores if s.subject == "run" and s.task in ("mlm_loss", "lm_loss"))
    apart = nats - record["heldout_nats"]
    told = f"held out {nats:.3f} nats, the shipped one {record['heldout_nats']:.3f} ({apart:+.3f}"
    opened.screen.say(f"teacher   {told}, {'within' if abs(apart) <= _AS_RECORDED_NATS else 'beyond'} 0.05)")
    here = {"corpus": corpus.content_hash, **{name: getattr(done.environment, name) for name in ("torch", "python")}}
    for name, value in here.items():
        if value != record[name]:
            opened.screen.say(f"teacher   {name} is {value} here, and was {record[name]} there")
    return opened.store.model_folder(done.run_id)
