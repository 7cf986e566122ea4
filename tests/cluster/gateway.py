"""An S3 store inside a cluster for live tests: moto's server in a pod of our own image, and a port of this machine.

What it holds is gone with its pod. Pods reach it by its service, this machine through the API server.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

PORT, NAME, BUCKET = 5000, "live-store", "live"


def start(core, namespace, image):
    """Make the pod and its service, and wait until the pod is ready."""
    labels = {"app": NAME}
    context = {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True, "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"}, "readOnlyRootFilesystem": True,
    }  # fmt: skip
    container = {
        "name": NAME, "image": image, "securityContext": context, "ports": [{"containerPort": PORT}],
        "command": ["moto_server", "-H", "0.0.0.0", "-p", str(PORT)],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE", "value": "65536"}],
        "resources": {  # objects lie on disk, but each request in memory, several times
            "requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "2Gi"},
        },
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 2},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }  # fmt: skip
    spec = {
        "containers": [container], "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }  # fmt: skip
    core.create_namespaced_pod(namespace, {"metadata": {"name": NAME, "labels": labels}, "spec": spec})
    service = {"selector": labels, "ports": [{"port": PORT}]}
    core.create_namespaced_service(namespace, {"metadata": {"name": NAME}, "spec": service})
    end = time.monotonic() + 300
    while not _is_ready(core.read_namespaced_pod(NAME, namespace)):
        assert time.monotonic() < end, f"pod {NAME} does not become ready; can its node pull {image}?"
        time.sleep(1)


def stop(core, namespace):
    """Remove both."""
    core.delete_namespaced_service(NAME, namespace)
    core.delete_namespaced_pod(NAME, namespace, grace_period_seconds=0)


def forward(core, namespace):
    """A listening socket on this machine; each connection to it goes to the pod."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        with suppress(OSError):  # closed
            while True:
                here, _ = listener.accept()
                threading.Thread(target=_join, args=(core, namespace, here), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def make_bucket():
    """The bucket, made from this machine."""
    import boto3

    boto3.client("s3").create_bucket(Bucket=BUCKET)


def _is_ready(pod):
    return any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions or [])


def _join(core, namespace, here):
    from kubernetes import client
    from kubernetes.stream import portforward

    own = client.CoreV1Api(client.ApiClient(core.api_client.configuration))  # it is altered while it connects
    forwarded = portforward(own.connect_get_namespaced_pod_portforward, NAME, namespace, ports=str(PORT))
    there = forwarded.socket(PORT)
    threading.Thread(target=_pump, args=(here, there), daemon=True).start()
    _pump(there, here)
    here.close()
    forwarded.close()


def _pump(source, target):
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
