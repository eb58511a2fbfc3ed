"""The manifests and the job template for a cluster, against the schemas of Kubernetes and of Prefect."""

import json
from typing import Any

import pytest
import yaml
from kubernetes_validate import validate
from prefect.server.schemas.actions import validate_base_job_template
from prefect.utilities.templating import apply_values

from tests.compose.stack import ROOT, Row

FOLDER = ROOT / "docker/kubernetes"
VERSION = "1.33"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS: list[Row] = [
    manifest for name in KUSTOMIZATION["resources"] for manifest in yaml.safe_load_all((FOLDER / name).read_text())
]
TEMPLATE = json.loads((FOLDER / "base-job-template.json").read_text())


def job(**chosen: Any) -> Row:
    """The manifest of a flow run's job, as Prefect's worker makes it from the template."""
    defaults = {key: one["default"] for key, one in TEMPLATE["variables"]["properties"].items() if "default" in one}
    told = {"name": "survivor", "labels": {}, "env": {"A": "b"}, "command": "prefect flow-run execute"}
    made = apply_values(TEMPLATE["job_configuration"], {**defaults, **told, **chosen})["job_manifest"]
    pod = made["spec"]["template"]["spec"]
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1), "the worker wants them here; no schema has them"
    (container,) = pod["containers"]
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    container["args"] = container["args"].split()
    return made


def pods(manifest: Row) -> list[Row]:
    """The specs of pods that a manifest leads to."""
    spec = manifest.get("spec", {})
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    return [spec["template"]["spec"]] if "template" in spec else []


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_every_manifest_holds_to_the_schema(manifest: Row) -> None:
    validate(manifest, VERSION, strict=True)


@pytest.mark.parametrize("chosen", [{}, {"image": "pco:gpu", "gpus": 8, "node_selector": {"gpu": "yes"}}])
def test_a_flow_runs_job_holds_to_the_schema(chosen: Row) -> None:
    made = job(**chosen)
    validate(made, VERSION, strict=True)
    assert "{{" not in json.dumps(made), "a variable was not filled in"


def test_prefect_takes_the_template() -> None:
    assert validate_base_job_template(TEMPLATE) == TEMPLATE


def test_every_variable_is_used_and_described() -> None:
    told = json.dumps(TEMPLATE["job_configuration"])
    for name, variable in TEMPLATE["variables"]["properties"].items():
        assert f"{{{{ {name} }}}}" in told
        assert variable["title"]
        assert variable["description"]


def test_every_pod_drops_its_privileges_and_is_limited() -> None:
    found = [pod for manifest in [*MANIFESTS, job()] for pod in pods(manifest)]
    assert len(found) == 5, "server, worker, deploy, recover, and a flow run's job"
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


def test_what_pods_mount_is_there_and_secrets_are_only_referred_to() -> None:
    kinds = {(one["kind"], one["metadata"]["name"]) for one in MANIFESTS}
    assert "Secret" not in {kind for kind, _ in kinds}
    maps = {one["name"] for one in KUSTOMIZATION["configMapGenerator"]}
    for pod in (pod for manifest in [*MANIFESTS, job()] for pod in pods(manifest)):
        for volume in pod.get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in kinds
            if content := volume.get("configMap"):
                assert content["name"] in maps
