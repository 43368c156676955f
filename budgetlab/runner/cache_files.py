"""Caches of teachers as files of others: exported from a results folder, and imported into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from budgetlab.errors import CallerError
from budgetlab.runner.teacher_cache import is_intact, read_entries, read_header, write_shard
from budgetlab.store import write_whole
from budgetlab.values import Kept, content_hash
from budgetlab.values.kept import KINDS

FORMATS = ("parquet",)


def export_cache(folder: Path, to: str, path: Path) -> int:
    """Write a cache as files of another program.

    Parameters
    ----------
    folder
        Of the cache: results/cache/teacher-...
    to
        "parquet": one file, a row a kept position, `sample` and `row` int, `ids` int32 and `log_probabilities` float32
        lists; what the cache is lies in its metadata.
    path
        A file that is not there yet.

    Returns
    -------
    sequences
        That were written.

    Raises
    ------
    CallerError
        For a folder that is no cache, a damaged shard, an unknown format, or a file that is there.
    """
    about, kept = _about(folder)
    asked = f"cache export --to {to}"
    if to not in FORMATS:
        raise CallerError(asked, "this format is not written", f"choose {' or '.join(FORMATS)}")
    if path.exists():
        raise CallerError(asked, f"{path} is there already", "give a new name")
    tables, sequences = [], 0
    for file in sorted(folder.glob("*.shard")):
        try:
            shard = read_header(file)
        except (ValueError, KeyError, TypeError) as error:
            raise CallerError(
                f"shard {file}", f"it is damaged ({error})", "run the study, which makes it again"
            ) from None
        if not is_intact(shard):
            raise CallerError(f"shard {file}", "it is damaged", "delete it, and run the study, which makes it again")
        packed, sizes = read_entries(shard, kept, about["rows"], about["vocab_size"])
        values, ids = kept.decode(np.asarray(packed), sizes.ravel())
        sequences += len(shard.samples)
        tables.append(_table(shard.samples, sizes, values, ids))
    import pyarrow as pa
    from pyarrow import parquet

    if not tables:
        raise CallerError(asked, f"{folder} has no shard", "run the study, which makes them")
    table = pa.concat_tables(tables)
    parquet.write_table(table.replace_schema_metadata({"budgetlab": json.dumps(about)}), path)
    return sequences


def _table(samples: np.ndarray, sizes: np.ndarray, values: np.ndarray, ids: np.ndarray) -> Any:
    import pyarrow as pa

    rows, there = sizes.shape[1], np.isfinite(values)
    begins = np.concatenate([[0], np.cumsum(sizes.ravel())]).astype(np.int32)
    columns = {
        "sample": pa.array(np.repeat(samples, rows)),
        "row": pa.array(np.tile(np.arange(rows), len(samples)).astype(np.int32)),
        "ids": pa.ListArray.from_arrays(begins, ids[there].astype(np.int32)),
        "log_probabilities": pa.ListArray.from_arrays(begins, values[there].astype(np.float32)),
    }
    return pa.table(columns)


def import_cache(path: Path, parent: Path) -> Path:
    """Read a parquet file that `export_cache` wrote, or another of its columns and metadata, and return its folder.

    Raises
    ------
    CallerError
        Where it is none, its positions are not whole sequences, or an id is beyond the vocabulary.
    """
    import pyarrow as pa
    from pyarrow import parquet

    asked, remedy = f"cache import {path}", "export it again"
    try:
        table = parquet.read_table(path)
        about = json.loads((table.schema.metadata or {})[b"budgetlab"])
        kept = _kept(about)
        samples, row = table["sample"].to_numpy(), table["row"].to_numpy()
        lists = [table[name].combine_chunks() for name in ("ids", "log_probabilities")]
        sizes = np.diff(np.asarray(lists[0].offsets).astype(np.int64)).reshape(-1, about["rows"])
        ids, values = (np.asarray(found.values) for found in lists)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise CallerError(asked, f"no cache can be read from it ({type(error).__name__}: {error})", remedy) from None
    ordered = (row.reshape(sizes.shape) == np.arange(about["rows"])).all()
    samples = samples.reshape(sizes.shape)
    if not ordered or (samples != samples[:, :1]).any() or len(np.unique(samples[:, 0])) != len(samples):
        raise CallerError(asked, "its rows are not those of whole sequences, each once", remedy)
    if len(ids) and not 0 <= ids.min() <= ids.max() < about["vocab_size"]:
        raise CallerError(asked, f"an id is beyond the vocabulary of {about['vocab_size']:,}", remedy)
    if (sizes > kept.most).any() or (not kept.ragged and (sizes != kept.most).any()):
        raise CallerError(asked, f"a row has another number of entries than {kept} keeps", remedy)
    shape = sizes.size, int(sizes.max(initial=0))
    there = np.arange(shape[1])[None, :] < sizes.reshape(-1, 1)
    wide, words = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int64)
    wide[there], words[there] = values, ids
    packed, counted = kept.encode(wide, words, about["vocab_size"])
    folder = parent / f"teacher-{content_hash(about)}"
    write_whole(folder / "about.json", json.dumps(about, indent=1))
    took = {"seconds": 0.0, "joules": 0.0}  # here; what it took elsewhere is not known
    write_shard(folder, samples[:, 0].astype(np.int64), counted if kept.ragged else None, packed, took)
    return folder


def _about(folder: Path) -> tuple[dict[str, Any], Kept]:
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        return about, _kept(about)
    except (OSError, ValueError, KeyError, TypeError) as error:
        wrong = f"no cache of a teacher ({type(error).__name__}: {error})"
        raise CallerError(f"cache {folder}", wrong, "give a folder results/cache/teacher-...") from None


def _kept(about: dict[str, Any]) -> Kept:
    return KINDS[about["kept"]["kind"]].model_validate(about["kept"])
