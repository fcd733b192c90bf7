"""Kubernetes manifests for a topology: a StatefulSet of peers, and a Job that collects their reports."""

from pathlib import Path
from typing import Any

import yaml

from dslth.config import RunConfig
from dslth.deploy.compose import PEER_PORT, REPORT_PORT
from dslth.topology import Topology

__all__ = ["manifests"]

USER = 10001
"""The user that the image's processes run as."""

_HEAD = """\
# {peers} peers and a collector of their reports, for Kubernetes. Written by: dslth k8s {file}
#
#     kubectl apply -f FILE, kubectl logs -f job/{name}-collector, kubectl delete -f FILE
#
# Peers make their keys at the first start; public ones are shared through a volume that many nodes can write
# (ReadWriteMany), private ones stay on each peer's own. The pod of a finished peer stays, as a StatefulSet demands.
"""


def manifests(file: Path | str, run: RunConfig, topology: Topology, *, image: str, memory: str) -> str:
    """Write the manifests of a topology, resolved and included; ``memory`` is the limit of a pod, as in 512Mi."""
    name = f"dslth-{Path(file).stem}".lower().replace("_", "-").replace(".", "-")
    labels = {"app.kubernetes.io/name": "dslth", "app.kubernetes.io/instance": name}
    peers, collector = f"{name}-peer", f"{name}-collector"
    pod = _Pod(name, image, memory, labels)
    resolved = run.model_copy(update={"graph": topology.to_config(), "network": None})
    peer = ["dslth-peer", "--topology", "/topology/topology.yaml", "--host", f"{peers}-{{id}}.{peers}:{PEER_PORT}"]
    peer += ["--keys", "/keys", "--out", "/state", "--reports", f"tcp://{collector}:{REPORT_PORT}", "--quiet"]
    words = " ".join(f"'{word}'" for word in peer)
    stay = f"test -e /state/done || {{ {words} && touch /state/done; }} && exec sleep infinity"
    listen = ["--listen", f"tcp://*:{REPORT_PORT}", "--keys", "/keys", "--out", "/runs"]
    documents = [
        _thing("v1", "ConfigMap", name, labels, data={"topology.yaml": resolved.to_yaml()}),
        _claim(f"{name}-public-keys", labels, "ReadWriteMany"),
        _claim(f"{name}-runs", labels, "ReadWriteOnce"),
        _service(peers, labels | {"dslth/role": "peer"}, PEER_PORT),
        _service(collector, labels | {"dslth/role": "collector"}, REPORT_PORT),
        _thing(
            "batch/v1",
            "Job",
            collector,
            labels,
            spec={
                "backoffLimit": 3,
                "template": pod.template(
                    "collector",
                    ["dslth", "collect", "/topology/topology.yaml", *listen],
                    {"runs": "/runs"},
                    volumes=[_from_claim("runs", f"{name}-runs"), {"name": "keys", "emptyDir": {}}],
                    restart="OnFailure",
                ),
            },
        ),
        _thing(
            "apps/v1",
            "StatefulSet",
            peers,
            labels,
            spec={
                "serviceName": peers,
                "replicas": topology.peers,
                "podManagementPolicy": "Parallel",
                "selector": {"matchLabels": labels | {"dslth/role": "peer"}},
                "template": pod.template("peer", ["sh", "-c", stay], {"state": "/state"}, volumes=[], restart="Always"),
                "volumeClaimTemplates": [_claim("state", labels), _claim("keys", labels)],
            },
        ),
    ]
    head = _HEAD.format(peers=topology.peers, file=Path(file).name, name=name)
    return head + "---\n" + "---\n".join(yaml.safe_dump(document, sort_keys=False) for document in documents)


class _Pod:
    """What the pods of peers and collector have in common."""

    def __init__(self, name: str, image: str, memory: str, labels: dict[str, str]) -> None:
        self._name, self._image, self._memory, self._labels = name, image, memory, labels

    def template(
        self, role: str, command: list[str], mounts: dict[str, str], *, volumes: list[dict[str, Any]], restart: str
    ) -> dict[str, Any]:
        places = mounts | {"topology": "/topology", "keys": "/keys", "public-keys": "/keys/public"}
        container = {
            "name": role,
            "image": self._image,
            "command": command,
            "ports": [{"containerPort": PEER_PORT if role == "peer" else REPORT_PORT}],
            "resources": {"limits": {"memory": self._memory}, "requests": {"memory": self._memory}},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": name, "mountPath": path} for name, path in places.items()],
        }
        shared = [
            {"name": "topology", "configMap": {"name": self._name}},
            _from_claim("public-keys", f"{self._name}-public-keys"),
        ]
        # the files' owner is set once: private keys must stay unreadable to the group
        who = {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"}
        spec = {
            "restartPolicy": restart,
            "securityContext": who,
            "containers": [container],
            "volumes": [*shared, *volumes],
        }
        return {"metadata": {"labels": self._labels | {"dslth/role": role}}, "spec": spec}


def _thing(version: str, kind: str, name: str, labels: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}} | more


def _service(name: str, labels: dict[str, str], port: int) -> dict[str, Any]:
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": labels, "ports": [{"port": port}]}
    return _thing("v1", "Service", name, labels, spec=spec)


def _claim(name: str, labels: dict[str, str], mode: str = "ReadWriteOnce") -> dict[str, Any]:
    spec = {"accessModes": [mode], "resources": {"requests": {"storage": "256Mi"}}}
    return _thing("v1", "PersistentVolumeClaim", name, labels, spec=spec)


def _from_claim(name: str, claim: str) -> dict[str, Any]:
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}
