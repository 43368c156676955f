"""Tables and options that a user gives: CSV files, NAME=VALUE pairs, and a law fitted to one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from budgetlab.errors import CallerError

__all__ = ["fit_table", "numbers", "pairs", "timed_elsewhere"]


def fit_table(path: Path, out: Path | None, form: str = "auto", **settings: Any) -> tuple[Any, Any]:
    """Fit a law to a table, or to what others' programs wrote; with `out`, leave fits.json, fits.csv and the figure.

    Returns what was found, which prints itself, and the same as plain JSON.
    """
    from budgetlab.fitting import fit
    from budgetlab.intake import read_table

    table = read_table(path, form)
    if settings["law"] == "isoflop" and "flops" in {*table.columns, *(settings["columns"] or {})}:
        return _fit_budgets(table, path.name, out, settings)
    settings["definitions"] = {**table.attrs.get("definitions", {}), **(settings.get("definitions") or {})}
    found = fit(table, **settings)
    if out is not None:
        from budgetlab.reporting.figures import draw_fit, render
        from budgetlab.reporting.figures import fit_table as drawn_table
        from budgetlab.store import write_fits

        write_fits(out, [found])
        if found.usable_for != "nothing":
            caption = f"{found.formula} fitted to {path.name}: curve, {100 * found.interval_level:g} % band, points"
            render("fit", draw_fit, drawn_table(found, table), out, caption)
    return found, found.model_dump(mode="json")


def _fit_budgets(table: Any, name: str, out: Path | None, settings: dict[str, Any]) -> tuple[Any, Any]:
    """Fit a parabola at each budget; with `out`, leave their optima and the figure."""
    from budgetlab.fitting import isoflop

    found = isoflop(table, **{key: settings[key] for key in ("columns", "resamples", "seed")})
    if out is not None:
        from budgetlab.reporting.figures import draw_isoflop, isoflop_table, render
        from budgetlab.store import write_whole

        write_whole(out / "optima.csv", found.table().to_csv(index=False))
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
