"""deploy/kubernetes/rayjob.yaml, as far as that goes without KubeRay's operator: its pods are pods to Kubernetes, and
its command is one."""

from __future__ import annotations

import shlex
from typing import Any

import kubernetes_validate
import yaml
from helpers import EXAMPLES

from deit_batch.commands.score import score

RAY_JOB = EXAMPLES.parent / "deploy" / "kubernetes" / "rayjob.yaml"


def spec() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(RAY_JOB.read_text())["spec"]
    return found


def test_the_pods_of_the_ray_job_are_pods() -> None:
    cluster = spec()["rayClusterSpec"]
    templates = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for template in templates:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **template}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    claims = {template["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] for template in templates}
    assert claims == {"deit-batch"}  # all nodes see the same


def test_the_ray_job_runs_a_command_that_there_is() -> None:
    _, command, *words = shlex.split(spec()["entrypoint"])
    assert command == "score"
    with score.make_context("score", words) as context:
        assert (context.params["engine"], context.params["out"]) == ("ray", "/data/preds")
