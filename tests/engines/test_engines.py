"""What starts workers elsewhere: what it is asked for, and what a worker does when its time is over."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from budgetlab import engines
from budgetlab.cli import run_command
from budgetlab.engines import Fleet, check_engine, kubernetes, slurm
from budgetlab.errors import CallerError


def fleet(**changed: object) -> Fleet:
    about = {
        "name": "My study", "arguments": ("work", "a study.toml"), "run_command": run_command, "workers": 8, "gpus": 1,
        "threads": 4, "slurm": {"partition": "gpu", "gpus": 2, "minutes": 240, "constraint": "h100"},
        "logs": Path("logs"),
    }  # fmt: skip
    return Fleet(**{**about, **changed})


def test_an_engine_that_is_unknown_or_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CallerError, match="--engine 'slrum': no engine of that name; did you mean slurm"):
        check_engine("slrum")
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    for engine, package in (("slurm", "submitit"), ("ray", "ray")):
        with pytest.raises(CallerError, match=rf'{package} is not installed; pip install "budgetlab\[{engine}\]"'):
            check_engine(engine)
    check_engine("local")


def test_slurm_is_asked_for_what_the_study_says() -> None:
    asked = slurm.parameters(fleet())
    assert (asked["timeout_min"], asked["gpus_per_node"], asked["cpus_per_task"]) == (240, 2, 4)
    assert asked["slurm_additional_parameters"] == {"open-mode": "append", "partition": "gpu", "constraint": "h100"}
    plain = slurm.parameters(fleet(slurm={}))
    assert plain["gpus_per_node"] == 1 and "timeout_min" not in plain
    assert "gpus_per_node" not in slurm.parameters(fleet(slurm={}, gpus=0))


def test_a_job_of_slurm_asks_its_worker_to_stop_and_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = SimpleNamespace(DelayedSubmission=lambda job: job)
    monkeypatch.setitem(sys.modules, "submitit.helpers", again)
    code = "import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75)); print(flush=True)\n"
    job = slurm.Job(("work", "a.toml"))
    job.process = subprocess.Popen([sys.executable, "-c", code + "time.sleep(60)"], stdout=subprocess.PIPE)
    assert job.process.stdout is not None
    with job.process.stdout as out:
        out.readline()
    began = time.monotonic()
    assert job.checkpoint().arguments == job.arguments
    assert job.process.returncode == 75 and time.monotonic() - began < 30
    with pytest.raises(RuntimeError, match="budgetlab nonsense ended with status 2"):
        slurm.Job(("nonsense",))()


def test_the_manifest_is_a_job_of_one_pod_a_worker() -> None:
    spec = yaml.safe_load(kubernetes.manifest(fleet(), "/shared"))
    assert spec["metadata"]["name"] == "budgetlab-my-study" and spec["spec"]["completionMode"] == "Indexed"
    assert spec["spec"]["completions"] == spec["spec"]["parallelism"] == 8
    (container,) = spec["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["budgetlab", "work", "a study.toml"] and container["workingDir"] == "/shared"
    assert container["resources"] == {"limits": {"cpu": 4, "nvidia.com/gpu": 1}}
    failing = {rule["action"]: rule["onExitCodes"]["values"] for rule in spec["spec"]["podFailurePolicy"]["rules"][:2]}
    assert failing == {"FailIndex": [42], "Ignore": [75]}
