"""Checkpoints that are whole or absent, verified when read, and safe to load.

A checkpoint is a folder of one safetensors file and one JSON file, made in a temporary folder, synced, and renamed;
its manifest has the size and SHA-256 of each file. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, uint8

from budgetlab.errors import BudgetlabError

_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


def step_name(step: int) -> str:
    """Name of the checkpoint after so many steps."""
    return f"step_{step:08d}"


def save_checkpoint(folder: Path, name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write `folder/name` so that a crash at any moment leaves the old folders whole and no torn new one."""
    final, partial = folder / name, folder / f".{name}.{os.getpid()}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, partial / _TENSORS)
        (partial / _STATE).write_text(json.dumps(dict(state)))
        manifest = {part: _fingerprint(partial / part) for part in (_TENSORS, _STATE)}
        (partial / _MANIFEST).write_text(json.dumps(manifest))
        for part in (_TENSORS, _STATE, _MANIFEST):
            _sync(partial / part)
        _sync(partial)
        _remove(final)
        partial.rename(final)
        _sync(folder)
    except SafetensorError as error:  # safetensors reports a full disk as its own error
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint after verifying it."""
    tensors, state = {}, None
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        intact = all(_fingerprint(path / part) == manifest[part] for part in (_TENSORS, _STATE))
        if intact:
            tensors, state = load_file(path / _TENSORS), read_state(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        pass
    if state is None:
        # The folder of its run: a finished run whose checkpoints alone are deleted stays finished.
        remedy = f"delete {path.parent.parent} and run again, which trains it anew"
        raise BudgetlabError(f"checkpoint {path}", "a file is missing, torn or altered", remedy)
    return tensors, state


def read_state(path: Path) -> dict[str, Any] | None:
    """Read what a checkpoint says beside its tensors, without verifying them; None where that cannot be read."""
    try:
        found = json.loads((path / _STATE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is there and verifies."""
    try:
        load_checkpoint(path)
    except BudgetlabError:
        return False
    return True


def latest_checkpoint(folder: Path, last: str | None = None) -> Path | None:
    """Return the newest checkpoint (up to the name `last`) that verifies, or None; torn ones are passed over."""
    if not folder.is_dir():
        return None
    names = (path.name for path in folder.iterdir() if path.name.startswith("step_"))
    newest_first = (folder / name for name in sorted(names, reverse=True) if last is None or name <= last)
    return next(filter(is_whole, newest_first), None)


def remove_checkpoints(folder: Path, names: Collection[str]) -> None:
    """Delete these checkpoints, and what killed writers left."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.endswith(".partial"):
                shutil.rmtree(path, ignore_errors=True)
            elif path.name in names:
                _remove(path)


def _remove(path: Path) -> None:
    """Delete a checkpoint, which stops to be one in a single step: half of one must not look like a torn one."""
    if path.exists():
        shutil.rmtree(path.rename(path.with_name(f".{path.name}.{os.getpid()}.old.partial")), ignore_errors=True)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and bits (SHA-256, 16 hex digits)."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(dtype=uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _fingerprint(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
