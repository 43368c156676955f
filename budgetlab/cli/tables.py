"""Tables and options that a user gives: CSV files, NAME=VALUE pairs, and a law fitted to one of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budgetlab.errors import CallerError, unknown_name

_RUN = ("run", "run_id", "run_name", "name", "Name")
_ARM = "arm"


@dataclass(frozen=True)
class TableQuestion:
    """What is asked of a table beside its curve: groups, the last rows, a direction, predictions, optima."""

    by: str | None = None
    last: bool = False
    higher_is_better: bool | None = None
    at: Mapping[str, float] = field(default_factory=dict)
    optimum: tuple[float, ...] = ()


def fit_table(
    path: Path, out: Path | None, form: str = "auto", *, asked: TableQuestion | None = None, **settings: Any
) -> tuple[Any, Any]:
    """Fit a law to a table, or to what others' programs wrote; with `out`, leave fits.json, fits.csv and the figure.

    Returns what was found, which prints itself, and the same as plain JSON.
    """
    from budgetlab.intake import read_table
    from budgetlab.laws import get_law

    asked, table = asked or TableQuestion(), read_table(path, form)
    law = get_law(settings["law"])
    place = (settings["columns"] or {}).get(law.outcome, law.outcome)
    run = settings["clusters"] or next((name for name in _RUN if name in table.columns), None)
    if asked.last:
        table = _last_rows(table, run, place, path.name)
    budgets = settings["law"] == "isoflop" and "flops" in {*table.columns, *(settings["columns"] or {})}
    if budgets:
        _refuse_idle(settings, asked, path.name)
    else:
        _refuse_pooled(table, run, asked.by, settings["clusters"], law, path.name)
        settings["higher_is_better"] = _rises(law, place, asked, path.name)
        if run is not None and table[run].duplicated().any():
            settings["clusters"] = run
    if asked.by is None:
        found, plain = _fit_one(table, path.name, out, settings)
        return _answered(found, plain, asked)
    if asked.by not in table.columns:
        raise unknown_name("column", asked.by, map(str, table.columns), f"fit --table {path.name} --by")
    from budgetlab.cli.groups import compare_groups

    texts, plains, fits = [], [], {}
    for group, part in table.groupby(asked.by, sort=True):
        folder = None if out is None else out / "".join(c if c.isalnum() or c in "-_" else "_" for c in str(group))
        own = {**settings} if budgets else {**settings, "arm": str(group)}
        found, plain = _fit_one(part.copy(), path.name, folder, own)
        found, plain = _answered(found, plain, asked)
        fits[str(group)] = found.fit if isinstance(found, Answered) else found
        texts.append(f"{asked.by} = {group}\n{found}")
        plains.append({"group": str(group), **plain})
    compared = [] if budgets else compare_groups(fits, bool(settings["higher_is_better"]))
    texts += [row["sentence"] for row in compared]
    return "\n\n".join(texts), {"by": asked.by, "fits": plains, "compared": compared}


@dataclass(frozen=True)
class Answered:
    """A fit with predictions and optima under it."""

    fit: Any
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([str(self.fit), *self.lines])


def _answered(found: Any, plain: dict[str, Any], asked: TableQuestion) -> tuple[Any, dict[str, Any]]:
    """Add what --at and --optimum ask for."""
    if not (asked.at or asked.optimum):
        return found, plain
    from budgetlab.fitting import frontier, predict

    lines, added = [], {}
    for key, given, rows in (
        ("at", asked.at, lambda: predict(found, {name: [value] for name, value in asked.at.items()})),
        ("optimum", asked.optimum, lambda: frontier(found, list(asked.optimum))),
    ):
        if not given:
            continue
        _check_asked(found, asked, key)
        table = rows()
        added[key] = [_plain_row(row) for row in table.to_dict("records")]
        for row in added[key]:
            words = ", ".join(f"{name} {_amount(row, name)}" for name in row if not name.endswith(_NOT_SAID))
            lines.append(f"predicted: {words}" + (" (extrapolated)" if row["extrapolated"] else ""))
    extrapolated = any(row["extrapolated"] for rows in added.values() for row in rows)
    return Answered(found, tuple(lines)), {**plain, **added, "extrapolated": extrapolated}


_NOT_SAID = ("_low", "_high", "low", "high", "extrapolated")


def _check_asked(found: Any, asked: TableQuestion, key: str) -> None:
    """Refuse inputs that the law does not have, and lack of those that it has."""
    from budgetlab.fitting.use import law_of
    from budgetlab.values import CurveFit

    if not isinstance(found, CurveFit):
        raise CallerError(f"fit --{key} of isoFLOP parabolas", "they have no curve", "fit a law such as chinchilla")
    if key == "at":
        inputs = law_of(found).inputs
        for name in asked.at:
            if name not in inputs:
                raise unknown_name("input", name, inputs, f"fit --at, law {found.law}")
        if missing := [name for name in inputs if name not in asked.at]:
            raise CallerError(f"fit --at, law {found.law}", f"no {', '.join(missing)}", f"add --at {missing[0]}=VALUE")


def _plain_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        name: bool(value) if name == "extrapolated" else float(value) if math.isfinite(value) else None
        for name, value in row.items()
    }


def _amount(row: Mapping[str, Any], name: str) -> str:
    stem = "" if name == "prediction" else f"{name}_"
    low, high, value = row.get(f"{stem}low"), row.get(f"{stem}high"), row[name]
    around = "" if low is None or high is None else f" [{low:.5g}, {high:.5g}]"
    return "n/a" if value is None else f"{value:.5g}{around}"


def _last_rows(table: Any, run: str | None, outcome: str, name: str) -> Any:
    """Keep the last row of each run that has an outcome, by step where there is one."""
    if run is None:
        raise CallerError(
            f"fit --table {name} --last", f"no column of runs ({', '.join(_RUN)})", "name it: --clusters COLUMN"
        )
    known = table[table[outcome].notna()] if outcome in table.columns else table
    known = known.sort_values("step", kind="stable") if "step" in known.columns else known
    kept = known.groupby(run, sort=False).tail(1).sort_index().reset_index(drop=True)
    kept.attrs.update(table.attrs)
    return kept


def _refuse_pooled(table: Any, run: str | None, by: str | None, clusters: str | None, law: Any, name: str) -> None:
    """Refuse one curve through several runs or arms; a law of several inputs, and --clusters, mean them together."""
    if by is not None or clusters is not None or len(law.inputs) > 1:
        return
    asked = f"fit --table {name}"
    if _ARM in table.columns and (count := table[_ARM].nunique()) > 1:
        raise CallerError(asked, f"{count} arms in one curve", f"give --by {_ARM} for a curve each")
    if run is not None and (count := table[run].nunique()) > 1 and table[run].duplicated().any():
        shown = ", ".join(map(str, table[run].unique()[:3])) + (", ..." if count > 3 else "")
        remedy = f"give --by COLUMN (such as --by {run}) for a curve each, or --last for the last row of each run"
        raise CallerError(asked, f"rows of {count} runs ({shown}) in one curve", remedy)


_IDLE = {
    "objective": "huber_log", "delta": 1e-3, "interval": "auto", "weights": None, "clusters": None, "pinned": {},
    "definitions": {}, "exclude_invalid": False,
}  # fmt: skip
"""Settings that parabolas at budgets do not read, with what the command line has where they are not given."""
_OPTIONS = {"pinned": "pin", "definitions": "define", "exclude_invalid": "exclude-invalid"}


def _refuse_idle(settings: Mapping[str, Any], asked: TableQuestion, name: str) -> None:
    """Refuse options that would have no effect on isoFLOP parabolas."""
    idle = [
        f"--{_OPTIONS.get(key, key)}" for key, usual in _IDLE.items() if settings.get(key, usual) not in (usual, None)
    ]
    if asked.last and "--clusters" in idle:  # it names the runs whose last row is kept
        idle.remove("--clusters")
    if asked.higher_is_better is not None:
        idle.append("--higher-is-better" if asked.higher_is_better else "--lower-is-better")
    if idle:
        wrong = f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect on parabolas at budgets"
        raise CallerError(f"fit --table {name}, law isoflop", wrong, "leave out, or fit another law")


def _rises(law: Any, outcome: str, asked: TableQuestion, name: str) -> bool:
    """Say whether the outcome is one that laws of losses fit as its distance from 1."""
    from budgetlab.values.scoring import higher_is_better

    if law.outcome != "y" or "x" in getattr(law, "rising", ()):
        return bool(asked.higher_is_better)
    if asked.higher_is_better is not None:
        return asked.higher_is_better
    return bool(higher_is_better(outcome, f"fit --table {name}, law {law.name}"))


def _fit_one(table: Any, name: str, out: Path | None, settings: dict[str, Any]) -> tuple[Any, Any]:
    """Fit one curve, or a parabola a budget; with `out`, leave its files."""
    from budgetlab.fitting import fit

    settings = dict(settings)
    if settings["law"] == "isoflop" and "flops" in {*table.columns, *(settings["columns"] or {})}:
        return _fit_budgets(table, name, out, settings)
    settings["definitions"] = {**table.attrs.get("definitions", {}), **(settings.get("definitions") or {})}
    found = fit(table, **settings)
    if out is not None:
        from budgetlab.reporting.figures import draw_fit, render
        from budgetlab.reporting.figures import fit_table as drawn_table
        from budgetlab.store import write_fits

        write_fits(out, [found])
        if found.usable_for != "nothing":
            caption = f"{found.formula} fitted to {name}: curve, {100 * found.interval_level:g} % band, points"
            render("fit", draw_fit, drawn_table(found, table), out, caption)
    return found, found.model_dump(mode="json")


def _fit_budgets(table: Any, name: str, out: Path | None, settings: dict[str, Any]) -> tuple[Any, Any]:
    """Fit a parabola at each budget; with `out`, leave their optima and the figure."""
    from budgetlab.fitting import isoflop

    found = isoflop(table, **{key: settings[key] for key in ("columns", "resamples", "seed")})
    if out is not None:
        from budgetlab.reporting.figures import draw_isoflop, isoflop_table, render
        from budgetlab.store import write_csv

        write_csv(out / "optima.csv", found.table())
        caption = f"isoFLOP parabolas of {name}, minima, and the line through those inside the sizes tried"
        render("isoflop", draw_isoflop, isoflop_table(found, table, settings["columns"]), out, caption)
    return found, found.as_json()


def timed_elsewhere(prices: Any, path: Path, execution: Any) -> Any:
    """Take the seconds of a profile from a CSV or JSON file of `arm` and `tokens_per_second`.

    A CSV file's lines after # say whence they are; a JSON file is a list of objects, one an arm.
    """
    from budgetlab.planner import with_throughput

    if path.suffix == ".json":
        return with_throughput(prices, _read_json("--throughput", path), path.name, execution)
    table = _read_csv("--throughput", path, comment="#")
    source = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return with_throughput(prices, table, " ".join([f"{path.name}:", *source]) if source else path.name, execution)


def _read_csv(option: str, path: Path, comment: str | None = None) -> Any:
    """Read the CSV file that an option names."""
    import pandas as pd

    try:
        return pd.read_csv(path, comment=comment)
    except FileNotFoundError:
        raise CallerError(f"{option} {path}", "no such file", "give the path of a CSV file") from None
    except (ValueError, OSError) as error:
        raise CallerError(f"{option} {path}", f"not a CSV table ({error})", "give a CSV file with a header") from None


def _read_json(option: str, path: Path) -> Any:
    """Read the JSON list of objects that an option names."""
    import pandas as pd

    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return pd.DataFrame.from_records(rows)
    except FileNotFoundError:
        raise CallerError(f"{option} {path}", "no such file", "give the path of a JSON file") from None
    except (ValueError, TypeError, OSError) as error:
        raise CallerError(f"{option} {path}", f"no list of objects ({error})", "give a JSON list") from None


def pairs(option: str, given: list[str] | None) -> dict[str, str]:
    """Read NAME=VALUE pairs."""
    parts = [item.partition("=") for item in given or []]
    for name, equals, value in parts:
        if not (name and equals and value):
            raise CallerError(f"{option} {name}{equals}{value}", "not NAME=VALUE", f"write {option} tokens=D")
    return {name: value for name, _, value in parts}


def numbers(option: str, given: list[str] | None) -> dict[str, float]:
    """Read NAME=NUMBER pairs."""
    found = {}
    for name, value in pairs(option, given).items():
        try:
            found[name] = float(value)
        except ValueError:
            raise CallerError(f"{option} {name}={value}", "not a number", f"write {option} E=1.69") from None
    return found
