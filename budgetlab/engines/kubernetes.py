"""Workers as an Indexed Job of Kubernetes: the manifest, for `kubectl apply -f -`."""

from __future__ import annotations

import json
import re

from budgetlab.engines import Fleet
from budgetlab.errors import FAILED_FOR_GOOD, Terminated

_MANIFEST = """\
# Set the image, which has budgetlab in it, and the claim of a volume that all pods share.
apiVersion: batch/v1
kind: Job
metadata:
  name: budgetlab-{name}
spec:
  completionMode: Indexed
  completions: {workers}
  parallelism: {workers}
  backoffLimitPerIndex: 5  # a worker that is lost is started again
  podFailurePolicy:
    rules:
      - action: FailIndex  # a unit failed for good
        onExitCodes: {{operator: In, values: [{failed}]}}
      - action: Ignore  # asked to stop, or others are still at work
        onExitCodes: {{operator: In, values: [{again}]}}
      - action: Ignore
        onPodConditions: [{{type: DisruptionTarget}}]
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 300  # what a worker is at is saved and given back meanwhile
      containers:
        - name: worker
          image: budgetlab:latest
          command: {command}
          workingDir: {folder}
          resources:
            limits: {limits}
          volumeMounts:
            - {{name: shared, mountPath: {folder}}}
      volumes:
        - name: shared
          persistentVolumeClaim: {{claimName: budgetlab}}
"""


def manifest(fleet: Fleet, folder: str) -> str:
    """Return the manifest of a Job of so many workers, in whose pods a shared volume is at a folder."""
    limits: dict[str, int] = {"cpu": fleet.threads} | ({"nvidia.com/gpu": fleet.gpus} if fleet.gpus else {})
    return _MANIFEST.format(
        failed=FAILED_FOR_GOOD,
        again=Terminated.exit_status,
        name=re.sub(r"[^a-z0-9]+", "-", fleet.name.lower()).strip("-"),
        workers=fleet.workers,
        command=json.dumps(["budgetlab", *fleet.arguments]),
        folder=json.dumps(folder),
        limits=json.dumps(limits),
    )
