"""Make the small wrong changes of mutations.md, one after the other, and see that the test named with each catches it.

Run it as ``python tests/mutations.py [NUMBER ...]``; the exit status is 1 where a change survives or cannot be made.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600
ENTRY = re.compile(r"## (\d+)\. (.+)\n\n`(.+)`, caught by `(.+)`\n\n```diff\n- (.+)\n\+ (.+)\n```")


class Mutation(NamedTuple):
    """A line, or a part of one, that is replaced, and the test that fails then."""

    number: int
    what: str
    file: str
    test: str
    old: str
    new: str


def mutations() -> list[Mutation]:
    """Read mutations.md."""
    found = ENTRY.findall((ROOT / "tests/mutations.md").read_text())
    return [Mutation(int(number), *rest) for number, *rest in found]


def outcome(package: Path, test: str) -> str:
    """Run one test against a copy of the package: "passes", "fails", or why there is no telling."""
    # Safe path: else the working folder comes first, and in it the package as it is.
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", test]
    try:
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"not over after {SECONDS} s"
    if ended.returncode == 0 and " skipped" in ended.stdout and " passed" not in ended.stdout:
        return "skipped"
    return {0: "passes", 1: "fails"}.get(ended.returncode, f"no such test, or pytest stopped ({ended.returncode})")


def judge(mutation: Mutation, package: Path, unchanged: dict[str, str]) -> str:
    """Make one change and run its test; `unchanged` remembers what tests do without any."""
    file = package.parent / mutation.file
    content = file.read_text() if file.is_file() else ""
    if (times := content.count(mutation.old)) != 1:
        return "moved: re-anchor" if not times else f"{times} times in its file: re-anchor"
    if mutation.test not in unchanged:
        unchanged[mutation.test] = outcome(package, mutation.test)
    if unchanged[mutation.test] != "passes":
        return f"without the change its test {unchanged[mutation.test]}"
    kept = file.stat()
    file.write_text(content.replace(mutation.old, mutation.new))
    changed = outcome(package, mutation.test)
    file.write_text(content)
    os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    return {"fails": "caught", "passes": "SURVIVES"}.get(changed, changed)


def main() -> int:
    """Print a line for each change."""
    wanted = set(map(int, sys.argv[1:]))
    chosen = [mutation for mutation in mutations() if not wanted or mutation.number in wanted]
    unchanged: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        package = Path(shutil.copytree(ROOT / "budgetlab", Path(folder) / "budgetlab"))
        verdicts = []
        for mutation in chosen:
            verdicts.append(judge(mutation, package, unchanged))
            print(f"{mutation.number:3}  {verdicts[-1]:<16}  {mutation.file:<36}  {mutation.what}", flush=True)
    print(f"{verdicts.count('caught')} of {len(chosen)} are caught")
    return 0 if chosen and verdicts.count("caught") == len(chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
