"""Values <-> results/NAME/: files written whole or not at all, by temp + fsync + rename; a file for each score."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import ValidationError

from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.frames import fits_frame, phases_frame, plan_frame
from budgetlab.machine import another_lives
from budgetlab.values import CostProfile, CurveFit, Plan, Point, RunRecord, Score, Value, Verdict

V = TypeVar("V", bound=Value)
T = TypeVar("T")
_LEFT_SECONDS = 3600.0
"""A file half written for longer is nobody's, unless the process in its name lives: clocks jump."""


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file so that no reader and no crash ever sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # a read-only folder refuses this too
            beside.unlink()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some room" if full else "see that the folder can be written"
        raise BudgetlabError(f"writing {path}", str(error), f"{remedy} and give the same command again") from error
    return path


_FORMULA = ("=", "+", "-", "@")


def write_csv(path: Path, table: pd.DataFrame) -> Path:
    """Write a CSV file, whole, in which no cell of text is a formula to a spreadsheet: such a one begins with '."""

    def plain(cell: object) -> object:
        if not isinstance(cell, str):
            return cell
        cell = cell.replace("\r\n", "\n").replace("\r", "\n")  # a lone CR is not quoted, and would end the row
        if not cell.lstrip().startswith(_FORMULA):
            return cell
        try:
            float(cell)
        except ValueError:
            return f"'{cell}"
        return cell

    safe = table.rename(columns=plain)
    for k, kind in enumerate(safe.dtypes):
        if not (pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind)):
            safe.isetitem(k, safe.iloc[:, k].map(plain).array)
    return write_whole(path, safe.to_csv(index=False))


def read_value(kind: type[V], path: str | Path) -> V:
    """Read one value from a JSON file."""
    asked = f"{kind.__name__} from {path}"
    try:
        return kind.model_validate_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CallerError(asked, "no such file", "make it first, or correct the path") from None
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise CallerError(asked, f"not one ({reason})", "delete the file or correct it") from None


def look_anew(folder: Path) -> Path:
    """Return a folder after opening it, which has a client of NFS ask the server what there is."""
    with contextlib.suppress(OSError):
        os.close(os.open(folder, os.O_RDONLY))
    return folder


def _read_if_there(kind: type[V], path: Path) -> V | None:
    return read_value(kind, path) if path.exists() else None


def read_profile(path: str | Path) -> CostProfile:
    """Read a profile from its file, such as one that was recorded beside a study.

    Raises
    ------
    CallerError
        When the file is missing, or holds something else.
    """
    return read_value(CostProfile, path)


def write_fits(folder: Path, fits: Sequence[CurveFit]) -> None:
    """Write fits.json and fits.csv."""
    _write_list(folder / "fits.json", fits)
    write_csv(folder / "fits.csv", fits_frame(fits))


def _write_list(path: Path, values: Sequence[Value]) -> None:
    write_whole(path, json.dumps([value.model_dump(mode="json") for value in values], indent=1))


def _read_list(kind: type[V], path: Path) -> list[V]:
    try:
        return [kind.model_validate(item) for item in json.loads(path.read_text())] if path.exists() else []
    except ValueError as error:  # pydantic's is one
        raise CallerError(f"{kind.__name__} from {path}", "not one", "delete the file and fit again") from error


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object, empty where there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise CallerError(f"{path}", f"not JSON ({error})", remedy) from None
    if not isinstance(found, dict):
        raise CallerError(f"{path}", "not a JSON object", remedy)
    return found


class Store:
    """The folder of one study.

    Parameters
    ----------
    results
        The results folder.
    study
        The study's name.
    part
        Which of its plans the index is of: trials of learning rates have their own, and share the runs.
    """

    def __init__(self, results: str | Path, study: str, *, part: str = "index") -> None:
        self.folder, self.part = Path(results) / study, part
        self.cache = Path(results) / "cache"
        """Corpora, shared by the studies of one results folder."""
        self.say: Callable[[str], None] | None = None
        """Told of damaged records, scores and rates, which are then passed over; without it they are an error."""

    def __getstate__(self) -> dict[str, Any]:
        """Without whom it tells: in another process there is no screen."""
        return {**self.__dict__, "say": None}

    def spared(self, read: Callable[[], T]) -> T | None:
        """Return what was read; None of what is damaged, where `say` is told of it."""
        try:
            return read()
        except CallerError as error:
            if self.say is None:
                raise
            self.say(f"damaged   {error}")
            return None

    def tidy(self) -> None:
        """Delete what killed writers left an hour ago or more."""
        for path in self.folder.rglob(".*.partial"):
            with contextlib.suppress(FileNotFoundError):  # its writer finished it meanwhile
                old = path.is_file() and time.time() - path.stat().st_mtime > _LEFT_SECONDS
                if old and not another_lives(path.name.split(".")[-2]):
                    path.unlink()

    def run_folder(self, run_id: str) -> Path:
        """Where one run keeps its record, points, scores and checkpoints."""
        return self.folder / "runs" / run_id

    def checkpoints(self, run_id: str) -> Path:
        """Where one run keeps its checkpoints."""
        return self.run_folder(run_id) / "checkpoints"

    def model_folder(self, run_id: str) -> Path:
        """Where one finished run lies as a plain transformers folder."""
        return self.run_folder(run_id) / "model"

    def score_path(self, run_id: str, key: str) -> Path:
        """Where one score is kept."""
        return self.run_folder(run_id) / "scores" / f"{key}.json"

    def predictions_path(self, run_id: str, key: str) -> Path:
        """Where the predictions behind a score are kept."""
        return self.run_folder(run_id) / "predictions" / f"{key}.parquet"

    def write_study(self, toml: str) -> Path:
        """Write the resolved study."""
        return write_whole(self.folder / "study.toml", toml)

    def write_profile(self, profile: CostProfile) -> Path:
        """Write profile.json and profile.csv (a row an arm and phase)."""
        write_csv(self.folder / "profile.csv", phases_frame(profile))
        return write_whole(self.folder / "profile.json", profile.model_dump_json(indent=1))

    def write_plan(self, plan: Plan) -> Path:
        """Write plan.json and plan.csv (a row an arm and budget)."""
        write_csv(self.folder / "plan.csv", plan_frame(plan))
        found = plan.model_dump(mode="json") | {"units": [unit.as_json() for unit in plan.units()]}
        return write_whole(self.folder / "plan.json", json.dumps(found, indent=1))

    def read_profile(self) -> CostProfile | None:
        """Return the profile, or None where there is none."""
        return _read_if_there(CostProfile, self.folder / "profile.json")

    def read_plan(self) -> Plan | None:
        """Return the plan, or None where there is none."""
        return _read_if_there(Plan, self.folder / "plan.json")

    def write_rates(self, key: str, losses: Mapping[str, float]) -> Path:
        """Write the losses of trials of learning rates, under the key of what was tried."""
        return write_whole(self.folder / "rates.json", json.dumps({"key": key, "readout_loss": dict(losses)}, indent=1))

    def read_rates(self, key: str) -> dict[str, float] | None:
        """Return the losses of these trials; None where they were not run, or others were."""
        path = self.folder / "rates.json"
        found = self.spared(lambda: _read_json(path, "delete the file; the trials are not run again")) or {}
        return found.get("readout_loss") if found.get("key") == key else None

    def write_index(self, **what: Sequence[str]) -> None:
        """Say which `runs`, and which `scores` ("run_id/key"), belong to the plan as it is now.

        Earlier plans may have left others; they are kept, and count again when a plan asks for them.
        """
        try:
            before = self._index()
        except CallerError:  # damaged: what is not said now, its verb says again
            before = {}
        write_whole(self.folder / f"{self.part}.json", json.dumps({**before, **what}, indent=1))

    def _index(self) -> dict[str, list[str]]:
        remedy = "give budgetlab run and then evaluate again: they write it anew, and do nothing twice"
        return _read_json(self.folder / f"{self.part}.json", remedy)

    def write_record(self, record: RunRecord) -> Path:
        """Write record.json; the points have their own file."""
        bare = record.model_copy(update={"points": ()})
        return write_whole(self.run_folder(record.run_id) / "record.json", bare.model_dump_json(indent=1))

    def read_record(self, run_id: str, *, last_point: bool = False) -> RunRecord | None:
        """Return one record with its points, or the last of them alone; None where there is no record."""
        record = _read_if_there(RunRecord, self.run_folder(run_id) / "record.json")
        if record is None:
            return None
        return record.model_copy(update={"points": self.read_points(run_id, last=last_point)})

    def record_status(self, run_id: str, of: str = "status") -> Any:
        """Return what a record says now, also where another machine wrote it; None where there is no record."""
        record = _read_if_there(RunRecord, look_anew(self.run_folder(run_id)) / "record.json")
        return None if record is None else getattr(record, of)

    def records(self, *, last_point: bool = False) -> list[RunRecord]:
        """Return the records of the plan's runs that have begun, with their points, or the last of them alone."""
        read = partial(self.read_record, last_point=last_point)
        found = (self.spared(partial(read, run_id)) for run_id in self._index().get("runs", []))
        return [record for record in found if record is not None]

    def set_aside(self, run_id: str) -> Path:
        """Have a run begin anew: put its record, points and log into a folder, and delete its checkpoints."""
        folder = self.run_folder(run_id)
        kept = folder / f"failed_{len(list(folder.glob('failed_*')))}"
        kept.mkdir()
        shutil.rmtree(self.checkpoints(run_id), ignore_errors=True)
        for path in (self.log_path(run_id), folder / "points.jsonl", folder / "record.json"):
            if path.exists():
                path.rename(kept / path.name)
        return kept

    def log_path(self, run_id: str) -> Path:
        """Where a failed run says where it failed."""
        return self.run_folder(run_id) / "failed.txt"

    def write_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Replace the points of a run (after a resume, those past its checkpoint are gone)."""
        lines = "".join(point.model_dump_json() + "\n" for point in points)
        write_whole(self.run_folder(run_id) / "points.jsonl", lines)

    def append_point(self, run_id: str, point: Point) -> None:
        """Append one point; a torn last line is passed over by readers."""
        with (self.run_folder(run_id) / "points.jsonl").open("a", encoding="utf-8") as file:
            file.write(point.model_dump_json() + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that comes after it must not outlive it

    def read_points(self, run_id: str, *, last: bool = False) -> tuple[Point, ...]:
        """Return the points that were written whole, or the last of them alone."""
        path = self.run_folder(run_id) / "points.jsonl"
        # What follows the last newline was cut off by a crash.
        whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        try:
            return tuple(Point.model_validate_json(line) for line in whole[-1 if last else 0 :] if line)
        except ValidationError as error:
            asked, wrong = f"points in {path}", f"a line is no point ({error.errors()[0]['msg']})"
            raise CallerError(asked, wrong, f"delete {path.parent} and run again, which trains it anew") from None

    def write_score(self, key: str, score: Score) -> Path:
        """Write one score under its content key."""
        return write_whole(self.score_path(score.run_id, key), score.model_dump_json(indent=1))

    def read_score(self, run_id: str, key: str) -> Score | None:
        """Return one score, or None."""
        return self.spared(lambda: _read_if_there(Score, self.score_path(run_id, key)))

    def scores(self) -> list[Score]:
        """Return the scores of the plan's runs, and its yardsticks."""
        found = (self.read_score(*name.rsplit("/", 1)) for name in self._index().get("scores", []))
        return [score for score in found if score is not None]

    def write_predictions(self, run_id: str, key: str, predictions: pd.DataFrame) -> Path:
        """Write what was predicted: a row an example, with its label and the logits."""
        return write_whole(self.predictions_path(run_id, key), predictions.to_parquet())

    def predictions(self, run_id: str, key: str) -> pd.DataFrame:
        """Return the predictions behind a score (its `run_id` and `key`).

        Raises
        ------
        CallerError
            When they are not there: they do not travel with the scores.
        """
        path = self.predictions_path(run_id, key)
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            wrong = f"cannot be read ({error})"
            raise CallerError(f"predictions {path}", wrong, "delete its score; evaluate") from None

    def write_fits(self, fits: Sequence[CurveFit], verdicts: Sequence[Verdict]) -> None:
        """Write fits.json, fits.csv and verdict.json."""
        write_fits(self.folder, fits)
        _write_list(self.folder / "verdict.json", verdicts)

    def read_fits(self) -> tuple[list[CurveFit], list[Verdict]]:
        """Return the fits and verdicts, empty where there are none."""
        return _read_list(CurveFit, self.folder / "fits.json"), _read_list(Verdict, self.folder / "verdict.json")
