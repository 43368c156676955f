"""The verb fit: the curves of a study, or a law fitted to any table of losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Argument, Option

from budgetlab.cli.options import Options
from budgetlab.errors import CallerError, unknown_name

if TYPE_CHECKING:
    import pandas as pd

    from budgetlab.values import CurveFit

_RUN = ("run", "run_id", "run_name", "name", "Name")
_ARM = "arm"


def fit(
    study: str | None = Argument(None, help="Study file.", metavar="STUDY"),
    table: Path | None = Option(None, help="Fit this table instead.", metavar="FILE"),
    form: str = Option("auto", "--from", help="What wrote it: auto, csv, trainer_state, tracker or harness."),
    law: str = Option("power", help="Name of a law, or path of a file with one, with --table: see docs/laws.md."),
    mapping: list[str] = Option((), "--map", help="NAME=COLUMN of the table, repeated.", metavar="NAME=COLUMN"),
    resamples: int = Option(1000, help="Resamples of the interval; 0 for none."),
    clusters: str | None = Option(None, help="Column that names the run of a row.", metavar="COLUMN"),
    pin: list[str] = Option((), help="PARAMETER=VALUE held fixed, repeated.", metavar="NAME=VALUE"),
    define: list[str] = Option((), help="NAME=MEANING for the record, repeated.", metavar="NAME=TEXT"),
    exclude_invalid: bool = Option(
        False, "--exclude-invalid", help="Leave out, and count, rows that no power law can have."
    ),
    by: str | None = Option(None, help="Column of groups: a curve each, compared.", metavar="COLUMN"),
    last: bool = Option(False, "--last", help="Keep the last row of each run."),
    higher: bool | None = Option(
        None, "--higher-is-better/--lower-is-better", help="Which way an outcome goes whose name does not say."
    ),
    at: list[str] = Option((), help="NAME=VALUE: predict there, repeated.", metavar="NAME=VALUE"),
    optimum: list[float] = Option((), help="Split this compute, repeated.", metavar="FLOPS"),
    out: Path | None = Option(None, help="Also write fits.json, fits.csv and the figure.", metavar="DIR"),
    *,
    options: Options,
) -> None:
    """Fit scaling curves and compare the arms; or, with --table and the options above --results, a law to any table."""
    if (study is None) == (table is None):
        raise CallerError("budgetlab fit", "give exactly one of STUDY and --table", "see budgetlab fit --help")
    if study is not None:
        _fit_study(study, options)
        return
    assert table is not None
    settings = {
        "law": law, "columns": _pairs("--map", mapping) or None, "resamples": resamples, "clusters": clusters,
        "pinned": _numbers("--pin", pin), "definitions": _pairs("--define", define),
        "exclude_invalid": exclude_invalid,
    }  # fmt: skip
    wanted = {"at": _numbers("--at", at), "optimum": list(optimum)}
    words, plain = _fit_table(table, form, settings, by=by, last=last, higher_is_better=higher, wanted=wanted, out=out)
    options.print(lambda: plain, list, words)


def _fit_study(study: str, options: Options) -> None:
    opened = options.open(study)
    scores, plan = opened.table(opened.store.scores()), opened.store.read_plan()
    if scores.empty:
        raise CallerError(f"fit {study}", "it has no scores", "run and evaluate it first")
    if plan is None:
        raise CallerError(f"fit {study}", "it has scores and no plan.json", f"make it again: budgetlab plan {study}")
    from budgetlab.reporting import conclude_study
    from budgetlab.reporting.tables import fit_sheet, verdict_sheet

    fits, verdicts = opened.fit(scores, plan)
    sentence = conclude_study(plan, scores, verdicts).sentence
    plain = {
        "sentence": sentence,
        "fits": [found.model_dump(mode="json") for found in fits],
        "verdicts": [verdict.model_dump(mode="json") for verdict in verdicts],
    }
    options.print(lambda: plain, lambda: [fit_sheet(fits), verdict_sheet(verdicts)], f"\n{sentence}")


def _fit_table(
    path: Path, form: str, settings: dict[str, Any], *, by: str | None, last: bool, higher_is_better: bool | None,
    wanted: Mapping[str, Any], out: Path | None,
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """Fit a law to a table, or to what others' programs wrote: what was found in words, and as plain JSON."""
    from budgetlab.intake import read_table
    from budgetlab.laws import get_law

    table, asked, law = read_table(path, form), f"fit --table {path.name}", get_law(settings["law"])
    outcome = (settings["columns"] or {}).get(law.outcome, law.outcome)
    run = settings["clusters"] or next((name for name in _RUN if name in table.columns), None)
    if last:
        table = _last_rows(table, run, outcome, asked)
    budgets = settings["law"] == "isoflop" and "flops" in {*table.columns, *(settings["columns"] or {})}
    if budgets:
        _refuse_idle(settings, last, higher_is_better, asked)
    else:
        if by is None and settings["clusters"] is None and len(law.inputs) == 1:
            _refuse_pooled(table, run, asked)
        settings = {**settings, "higher_is_better": _rises(law, outcome, higher_is_better, asked)}
        if run is not None and table[run].duplicated().any():
            settings["clusters"] = run
    if by is not None and by not in table.columns:
        raise unknown_name("column", by, map(str, table.columns), f"{asked} --by")
    groups = {"": table} if by is None else {str(name): part.copy() for name, part in table.groupby(by, sort=True)}
    texts, plains, fits = [], [], {}
    for group, part in groups.items():
        folder, own, head, named = out, settings, [], {}
        if by is not None:
            folder = None if out is None else out / "".join(c if c.isalnum() or c in "-_" else "_" for c in group)
            own = settings if budgets else {**settings, "arm": group}
            head, named = [f"{by} = {group}"], {"group": group}
        fits[group], plain = _fit_one(part, path.name, folder, own, budgets)
        lines, further = _predictions(fits[group], wanted)
        texts.append("\n".join([*head, str(fits[group]), *lines]))
        plains.append({**named, **plain, **further})
    if by is None:
        return texts[0], plains[0]
    compared = [] if budgets else _compare_groups(fits, bool(settings["higher_is_better"]))
    texts += [row["sentence"] for row in compared]
    return "\n\n".join(texts), {"by": by, "fits": plains, "compared": compared}


def _fit_one(
    table: pd.DataFrame, name: str, out: Path | None, settings: Mapping[str, Any], budgets: bool
) -> tuple[Any, dict[str, Any]]:
    """Fit one curve, or a parabola a budget; with `out`, leave its files."""
    from budgetlab.fitting import fit, isoflop
    from budgetlab.store import write_csv, write_fits

    if budgets:
        found = isoflop(table, **{key: settings[key] for key in ("columns", "resamples")})
        if out is not None:
            from budgetlab.reporting.figures import draw_isoflop, isoflop_table, render

            write_csv(out / "optima.csv", found.table())
            caption = f"isoFLOP parabolas of {name}, minima, and the line through those inside the sizes tried"
            render("isoflop", draw_isoflop, isoflop_table(found, table, settings["columns"]), out, caption)
        return found, found.as_json()
    definitions = {**table.attrs.get("definitions", {}), **settings["definitions"]}
    curve = fit(table, **{**settings, "definitions": definitions, "diagnostics": True})
    if out is not None:
        write_fits(out, [curve])
        if curve.usable_for != "nothing":
            from budgetlab.reporting.figures import draw_fit, render
            from budgetlab.reporting.figures import fit_table as drawn_table

            caption = f"{curve.formula} fitted to {name}: curve, {100 * curve.interval_level:g} % band, points"
            render("fit", draw_fit, drawn_table(curve, table), out, caption)
    return curve, curve.model_dump(mode="json")


def _predictions(found: Any, wanted: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Answer --at and --optimum: lines, and plain JSON."""
    from budgetlab.fitting import frontier, predict
    from budgetlab.fitting.use import law_of
    from budgetlab.values import CurveFit

    lines: list[str] = []
    added: dict[str, Any] = {}
    for key, given in wanted.items():
        if not given:
            continue
        if not isinstance(found, CurveFit):
            raise CallerError(f"fit --{key} of isoFLOP parabolas", "they have no curve", "fit a law such as chinchilla")
        if key == "at":
            asked, inputs = f"fit --at, law {found.law}", law_of(found).inputs
            if unknown := [name for name in given if name not in inputs]:
                raise unknown_name("input", unknown[0], inputs, asked)
            if missing := [name for name in inputs if name not in given]:
                raise CallerError(asked, f"no {', '.join(missing)}", f"add --at {missing[0]}=VALUE")
            table = predict(found, {name: [value] for name, value in given.items()})
        else:
            table = frontier(found, list(given))
        added[key] = [
            {
                str(name): bool(value) if name == "extrapolated" else float(value) if math.isfinite(value) else None
                for name, value in row.items()
            }
            for row in table.to_dict("records")
        ]
        for row in added[key]:
            shown = [name for name in row if not name.endswith(("low", "high", "extrapolated"))]
            words = ", ".join(f"{name} {_with_interval(row, name)}" for name in shown)
            lines.append(f"predicted: {words}" + (" (extrapolated)" if row["extrapolated"] else ""))
    if added:
        added["extrapolated"] = any(row["extrapolated"] for rows in added.values() for row in rows)
    return lines, added


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    stem = "" if name == "prediction" else f"{name}_"
    low, high, value = row.get(f"{stem}low"), row.get(f"{stem}high"), row[name]
    around = "" if low is None or high is None else f" [{low:.5g}, {high:.5g}]"
    return "n/a" if value is None else f"{value:.5g}{around}"


def _compare_groups(fits: Mapping[str, CurveFit], higher_is_better: bool) -> list[dict[str, Any]]:
    """Compare each pair of curves at the largest input that both were fitted to, adjusted for the number of pairs."""
    import numpy as np

    from budgetlab.fitting import predict
    from budgetlab.fitting.use import interval_ends, law_of

    compared, pairs = [], math.comb(len(fits), 2)
    for (a, one), (b, other) in combinations(fits.items(), 2):
        unknown = dict.fromkeys(("at", "difference", "interval", "adjusted_interval", "better"))
        row: dict[str, Any] = {"a": a, "b": b, **unknown}
        ranges = [*one.input_ranges.values(), *other.input_ranges.values()]
        low, high = (max(r[0] for r in ranges), min(r[1] for r in ranges)) if ranges else (1.0, 0.0)
        alike = len(one.input_ranges) == 1 and one.input_ranges.keys() == other.input_ranges.keys()
        if "nothing" in (one.usable_for, other.usable_for) or not alike or low > high:
            row["sentence"] = f"{a} and {b}: not compared, no input at which both have a usable curve"
            compared.append(row)
            continue
        at = {next(iter(one.input_ranges)): high}
        first, second = (float(predict(found, at)["prediction"].iloc[0]) for found in (one, other))
        row |= {"at": at, "difference": first - second}
        around = "no interval"
        if one.draws and other.draws:
            clouds = [
                law_of(found).predict({key: np.array(v) for key, v in found.draws.items()}, at)
                for found in (one, other)
            ]
            count = min(map(len, clouds))  # the runs of two groups are apart: any pairing is a draw of both
            sign = -1.0 if one.outcome_transform == "1 - y" else 1.0
            apart, level = sign * (clouds[0][:count] - clouds[1][:count]), one.interval_level
            adjusted = interval_ends(apart, 1 - (1 - level) / pairs)  # Bonferroni
            row["interval"] = [float(end) for end in interval_ends(apart, level)]
            row["adjusted_interval"] = [float(end) for end in adjusted]
            around = "{:g} % interval {:.4g} to {:.4g}".format(100 * level, *row["adjusted_interval"])
            around += f", adjusted for {pairs} comparisons" if pairs > 1 else ""
            if not row["adjusted_interval"][0] <= 0 <= row["adjusted_interval"][1]:
                row["better"] = a if (first > second) == higher_is_better else b
        word = f"{row['better']} is better" if row["better"] else "not resolved"
        where = ", ".join(f"{name} = {x:.4g}" for name, x in at.items())
        row["sentence"] = f"At {where}, predicted {a} - {b} = {first - second:.4g} ({around}): {word}."
        compared.append(row)
    return compared


def _last_rows(table: pd.DataFrame, run: str | None, outcome: str, asked: str) -> pd.DataFrame:
    """Keep the last row of each run that has an outcome, by step where there is one."""
    if run is None:
        raise CallerError(f"{asked} --last", f"no column of runs ({', '.join(_RUN)})", "name it: --clusters COLUMN")
    known = table[table[outcome].notna()] if outcome in table.columns else table
    known = known.sort_values("step", kind="stable") if "step" in known.columns else known
    kept = known.groupby(run, sort=False).tail(1).sort_index().reset_index(drop=True)
    kept.attrs.update(table.attrs)
    return kept


def _refuse_pooled(table: pd.DataFrame, run: str | None, asked: str) -> None:
    """Refuse one curve through several runs or arms; a law of several inputs, and --clusters, mean them together."""
    if _ARM in table.columns and (count := table[_ARM].nunique()) > 1:
        raise CallerError(asked, f"{count} arms in one curve", f"give --by {_ARM} for a curve each")
    if run is not None and (count := table[run].nunique()) > 1 and table[run].duplicated().any():
        shown = ", ".join(map(str, table[run].unique()[:3])) + (", ..." if count > 3 else "")
        remedy = f"give --by COLUMN (such as --by {run}) for a curve each, or --last for the last row of each run"
        raise CallerError(asked, f"rows of {count} runs ({shown}) in one curve", remedy)


def _refuse_idle(settings: Mapping[str, Any], last: bool, higher_is_better: bool | None, asked: str) -> None:
    """Refuse options that would have no effect on isoFLOP parabolas."""
    named = {
        "--clusters": settings["clusters"] and not last,  # with --last it names the runs whose last row is kept
        "--pin": settings["pinned"], "--define": settings["definitions"],
        "--exclude-invalid": settings["exclude_invalid"], "--higher-is-better": higher_is_better,
        "--lower-is-better": higher_is_better is False,
    }  # fmt: skip
    if idle := [name for name, given in named.items() if given]:
        wrong = f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect on parabolas at budgets"
        raise CallerError(f"{asked}, law isoflop", wrong, "leave out, or fit another law")


def _rises(law: Any, outcome: str, stated: bool | None, asked: str) -> bool:
    """Say whether the outcome is one that laws of losses fit as its distance from 1."""
    from budgetlab.values.scoring import higher_is_better

    if stated is not None or law.outcome != "y" or "x" in getattr(law, "rising", ()):
        return bool(stated)
    return bool(higher_is_better(outcome, f"{asked}, law {law.name}"))


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """Read NAME=VALUE pairs."""
    found = {}
    for item in given:
        name, _, found_value = item.partition("=")
        if not (name and found_value):
            raise CallerError(f"{option} {item}", "not NAME=VALUE", f"write {option} tokens=D")
        found[name] = found_value
    return found


def _numbers(option: str, given: Sequence[str]) -> dict[str, float]:
    """Read NAME=NUMBER pairs."""
    found = {}
    for name, value in _pairs(option, given).items():
        try:
            found[name] = float(value)
        except ValueError:
            raise CallerError(f"{option} {name}={value}", "not a number", f"write {option} E=1.69") from None
    return found
