"""The door to Kubernetes: the only module that imports its client. Every call has a time limit and a plain error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from inpaint.cluster.manifest import KIND_LABEL
from inpaint.cluster.refusals import AlreadyExists, BadRequest, NotFound, Unavailable, explain, insist
from inpaint.cluster.runtime import RUNTIME_KEY, Runtime, parse_runtime
from inpaint.cluster.task import TASK_NAME
from inpaint.errors import ClusterError

Object = dict[str, Any]
Answer = TypeVar("Answer")
GROUP, VERSION, JOBS, CLUSTERS = "ray.io", "v1", "rayjobs", "rayclusters"
MANAGER = "inpaint"
RUNTIME_SELECTOR = "inpaint/runtime=true"
PAUSES_SECONDS = (0.2, 0.4, 0.8)  # before a request is made again that got no answer, or 5xx or 429
SILENCE_SECONDS = 300.0  # of a log that is followed, after which the connection is made anew
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Cluster:
    """One namespace of one Kubernetes cluster.

    Args:
        api: a `kubernetes.client.ApiClient`.
        namespace: in which everything happens.
        timeout_seconds: for one request.
    """

    def __init__(self, api: Any, namespace: str, *, timeout_seconds: float = 30.0) -> None:
        client = _sdk().client
        self.namespace = namespace
        self._objects = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self._host = api.configuration.host
        self._timeout = timeout_seconds

    # runtime

    def read_runtime(self, name: str | None = None) -> Runtime:
        """The runtime that a chart has put into this namespace.

        Raises:
            ClusterError: none, or several and no name given.
            ConfigError: its content is not a runtime.
        """
        if name is not None:
            one = self.find_config_map(name)
            if one is None:
                raise ClusterError(f"runtime {name} is not in namespace {self.namespace}; name another, or install it")
            found = [one]
        else:
            answer = self._call(
                lambda: self._core.list_namespaced_config_map(
                    self.namespace, label_selector=RUNTIME_SELECTOR, _request_timeout=self._timeout
                ),
                "list the runtimes",
            )
            found = [_plain(item) for item in answer.items]
        if len(found) != 1:
            names = ", ".join(sorted(item["metadata"]["name"] for item in found)) or "none"
            what = "give one with --runtime" if found else "install the chart: helm install inpaint ./helm"
            raise ClusterError(f"namespace {self.namespace} has {names} for a runtime; {what}")
        place = f"ConfigMap {found[0]['metadata']['name']}"
        text = (found[0].get("data") or {}).get(RUNTIME_KEY)
        if text is None:
            raise ClusterError(f"{place} has no {RUNTIME_KEY}; is it a runtime?")
        return parse_runtime(text, place=place)

    # jobs

    def find_job(self, name: str) -> Object | None:
        """A RayJob, or None."""
        try:
            answer: Object = self._call(
                lambda: self._objects.get_namespaced_custom_object(*self._jobs(name), _request_timeout=self._timeout),
                f"read {name}",
            )
        except NotFound:
            return None
        return answer

    def list_jobs(self) -> tuple[list[Object], str]:
        """Our RayJobs, newest last, and the version of the list, to watch from."""
        answer: Object = self._call(
            lambda: self._objects.list_namespaced_custom_object(
                *self._jobs(), label_selector=KIND_LABEL, _request_timeout=self._timeout
            ),
            "list RayJobs",
        )
        jobs = sorted(answer["items"], key=lambda job: str(job["metadata"].get("creationTimestamp")))
        return jobs, str(answer["metadata"].get("resourceVersion", ""))

    def create_job(self, job: Object, *, dry_run: bool = False) -> Object:
        """Create a RayJob, or let the server check it; unknown fields are refused.

        Raises:
            AlreadyExists: one of this name is there.
            ClusterError: refused; names the fields.
        """
        answer: Object = self._call(
            lambda: self._objects.create_namespaced_custom_object(
                *self._jobs(), job, field_manager=MANAGER, field_validation="Strict", _request_timeout=self._timeout,
                **({"dry_run": "All"} if dry_run else {}),
            ),
            f"create RayJob {job['metadata']['name']}",
        )  # fmt: skip
        return answer

    def annotate_job(self, name: str, annotations: dict[str, str]) -> None:
        """Add annotations to a RayJob."""
        body = {"metadata": {"annotations": annotations}}
        self._call(
            lambda: self._objects.patch_namespaced_custom_object(
                *self._jobs(name), body, field_manager=MANAGER, _content_type="application/merge-patch+json",
                _request_timeout=self._timeout,
            ),
            f"annotate {name}",
        )  # fmt: skip

    def delete_job(self, name: str, *, uid: str | None = None, wait_seconds: float = 0.0) -> bool:
        """Delete a RayJob with all that belongs to it; whether it is gone.

        Args:
            name: of the RayJob.
            uid: delete only this very one.
            wait_seconds: how long to wait until it and its pods are gone.
        """
        body: Object = {"propagationPolicy": "Foreground" if wait_seconds else "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            self._call(
                lambda: self._objects.delete_namespaced_custom_object(
                    *self._jobs(name), body=body, _request_timeout=self._timeout
                ),
                f"delete {name}",
            )
        except NotFound:
            return True
        until = time.monotonic() + wait_seconds
        while (job := self.find_job(name)) is not None and (uid is None or job["metadata"].get("uid") == uid):
            if time.monotonic() >= until:
                return False
            time.sleep(min(2.0, max(0.05, wait_seconds / 50)))
        return True

    def put_run_file(self, config_map: Object, *, owner: Object | None, dry_run: bool = False) -> None:
        """Create a run's ConfigMap, owned by its RayJob and naming it; one of an earlier RayJob is replaced.

        Args:
            config_map: without an owner.
            owner: the RayJob as the server returned it; None for a dry run before there is one.
            dry_run: only let the server check it.
        """
        body = {**config_map, "metadata": {**config_map["metadata"]}}
        if owner is not None:
            body["metadata"]["ownerReferences"] = [_owner_reference(owner)]
            body["data"] = config_map["data"] | {TASK_NAME: owner["metadata"]["uid"]}
        name = body["metadata"]["name"]
        try:
            self._create_config_map(body, dry_run=dry_run)
        except AlreadyExists:
            if dry_run:
                return
            old = self.find_config_map(name)
            if old is not None and owner is not None and _is_owned(old, owner):
                return
            self.delete_config_map(name)
            self._create_config_map(body, dry_run=False)

    def put_stop_mark(self, config_map: str, *, owner: Object) -> None:
        """Create the ConfigMap that asks a task to stop; it goes with the task's RayJob."""
        metadata = {"name": config_map, "namespace": self.namespace, "ownerReferences": [_owner_reference(owner)]}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"stop": ""}}
        with suppress(AlreadyExists):
            self._create_config_map(body, dry_run=False)

    def delete_config_map(self, name: str) -> None:
        """Delete a ConfigMap, if it is there."""
        with suppress(NotFound):
            self._call(
                lambda: self._core.delete_namespaced_config_map(name, self.namespace, _request_timeout=self._timeout),
                f"delete ConfigMap {name}",
            )

    def find_config_map(self, name: str) -> Object | None:
        """A ConfigMap, or None."""
        try:
            answer = self._call(
                lambda: self._core.read_namespaced_config_map(name, self.namespace, _request_timeout=self._timeout),
                f"read ConfigMap {name}",
            )
        except NotFound:
            return None
        return _plain(answer)

    # what belongs to a job

    def find_cluster(self, name: str) -> Object | None:
        """A RayCluster, or None."""
        try:
            answer: Object = self._call(
                lambda: self._objects.get_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, CLUSTERS, name, _request_timeout=self._timeout
                ),
                f"read RayCluster {name}",
            )
        except NotFound:
            return None
        return answer

    def list_pods(self, selector: str) -> list[Object]:
        """Pods with these labels, oldest first."""
        answer = self._call(
            lambda: self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _request_timeout=self._timeout
            ),
            "list pods",
        )
        return sorted(map(_plain, answer.items), key=lambda pod: str(pod["metadata"].get("creationTimestamp")))

    def list_events(self, names: Callable[[str], bool]) -> list[Object]:
        """Events of the objects whose name `names` accepts."""
        answer = self._call(
            lambda: self._core.list_namespaced_event(self.namespace, _request_timeout=self._timeout), "list events"
        )
        events = [_plain(item) for item in answer.items]
        return [event for event in events if names((event.get("involvedObject") or {}).get("name") or "")]

    def read_log(
        self, pod: str, container: str, *, tail_lines: int | None = None, timestamps: bool = False
    ) -> str:
        """A container's log so far, each line after its time if asked; empty when there is none."""
        try:
            answer = self._call(
                lambda: self._core.read_namespaced_pod_log(
                    pod, self.namespace, container=container, timestamps=timestamps, _preload_content=False,
                    _request_timeout=self._timeout,
                    **({"tail_lines": tail_lines} if tail_lines else {}),
                ),
                f"read the log of {pod}",
            )  # fmt: skip
        except (NotFound, BadRequest):  # not started yet, or gone
            return ""
        return bytes(answer.data).decode(errors="replace")

    def follow_log(self, pod: str, container: str, *, since_seconds: int | None = None) -> Iterator[str]:
        """Lines of a container's log as they come, until it ends or the connection is cut, or is silent for long.

        Each line begins with its time, a space, and then the text.
        """
        import urllib3

        try:
            answer = self._call(
                lambda: self._core.read_namespaced_pod_log(
                    pod, self.namespace, container=container, follow=True, timestamps=True, _preload_content=False,
                    _request_timeout=(self._timeout, SILENCE_SECONDS),
                    **({"since_seconds": since_seconds} if since_seconds else {}),
                ),
                f"follow the log of {pod}",
            )  # fmt: skip
        except (NotFound, BadRequest):
            return
        rest = b""
        try:
            for chunk in answer.stream(65536, decode_content=False):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
        except urllib3.exceptions.HTTPError:
            pass
        if rest:
            yield rest.decode(errors="replace")

    def watch_jobs(self, *, every_seconds: float) -> Iterator[list[Object]]:
        """Our RayJobs now, and again after each change and at least every so often; never ends by itself.

        A dropped connection is taken up again, and a version too old for the server (410) starts from a fresh list.
        """
        client, watch = _sdk().client, _sdk().watch
        jobs, version = self.list_jobs()
        while True:
            known = {job["metadata"]["name"]: job for job in jobs}
            yield list(known.values())
            while version:
                stream = watch.Watch()
                try:
                    for event in stream.stream(
                        self._objects.list_namespaced_custom_object, *self._jobs(), label_selector=KIND_LABEL,
                        resource_version=version, timeout_seconds=max(1, round(every_seconds)),
                        _request_timeout=every_seconds + self._timeout,
                    ):  # fmt: skip
                        version = _apply_event(known, event) or version
                        yield list(known.values())
                except client.ApiException as error:
                    refusal = explain(error, "watch RayJobs", self._host)
                    if error.status != 410 and not isinstance(refusal, Unavailable):
                        raise refusal from None
                    break  # too old, or away: list again
                except Exception as error:
                    if not _is_network(error):
                        raise
                    break
                finally:
                    stream.stop()
                yield list(known.values())
            time.sleep(min(1.0, every_seconds))
            jobs, version = insist(self.list_jobs)

    def _jobs(self, *name: str) -> tuple[str, ...]:
        return (GROUP, VERSION, self.namespace, JOBS, *name)

    def _create_config_map(self, body: Object, *, dry_run: bool) -> None:
        self._call(
            lambda: self._core.create_namespaced_config_map(
                self.namespace, body, field_manager=MANAGER, field_validation="Strict", _request_timeout=self._timeout,
                **({"dry_run": "All"} if dry_run else {}),
            ),
            f"create ConfigMap {body['metadata']['name']}",
        )  # fmt: skip

    def _call(self, request: Callable[[], Answer], what: str) -> Answer:
        """The answer to a request; it is made again where a cut connection, or a busy or broken server, left none.

        Whatever comes here bears being made twice: a second creation is `AlreadyExists`, a second deletion `NotFound`.

        Raises:
            Unavailable: still no answer after some pauses, or after the time limit of one request.
            ClusterError: refused.
        """
        client, until, pauses = _sdk().client, time.monotonic() + self._timeout, iter(PAUSES_SECONDS)
        while True:
            try:
                return request()
            except client.ApiException as error:
                failure = explain(error, what, self._host)
            except Exception as error:
                if not _is_network(error):
                    raise
                failure = Unavailable(
                    f"cannot {what}: no answer from {self._host} ({type(error).__name__}); check the kubeconfig's "
                    "context and the network"
                )
            pause = next(pauses, None)
            if not isinstance(failure, Unavailable) or pause is None or time.monotonic() > until:
                raise failure
            time.sleep(pause)


def connect(*, context: str | None = None, namespace: str | None = None) -> Cluster:
    """A cluster by the pod's own identity, or by a kubeconfig's context.

    Raises:
        ClusterError: neither is there.
    """
    config = _sdk().config
    settings = _sdk().client.Configuration()
    settings.retries = False  # _call decides what is tried again
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST") and context is None and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config(client_configuration=settings)
            home = POD_NAMESPACE.read_text().strip()
        else:
            files = os.environ.get("KUBECONFIG") or None  # the client itself reads it only once, on import
            config.load_kube_config(files, context=context, client_configuration=settings)
            contexts, active = config.list_kube_config_contexts(files)
            chosen = active if context is None else next(each for each in contexts if each["name"] == context)
            home = chosen["context"].get("namespace", "default")
    except (config.ConfigException, OSError, StopIteration) as error:
        raise ClusterError(
            f"no Kubernetes cluster is configured ({error}); set KUBECONFIG, choose --context, or use "
            "--address for a standing Ray cluster"
        ) from None
    return Cluster(_sdk().client.ApiClient(settings), namespace or home)


def _sdk() -> Any:
    """The Kubernetes client, imported on first use, because it takes a third of a second."""
    import kubernetes
    import kubernetes.watch

    return kubernetes


def _is_network(error: Exception) -> bool:
    import urllib3

    return isinstance(error, urllib3.exceptions.HTTPError | OSError)


def _plain(item: Any) -> Object:
    """A typed object as the JSON it came from."""
    plain: Object = item if isinstance(item, dict) else _sdk().client.ApiClient().sanitize_for_serialization(item)
    return plain


def _apply_event(known: dict[str, Object], event: Any) -> str | None:
    """Bring the known jobs up to date; the version to go on from."""
    item = event["object"]
    metadata = item.get("metadata") or {}
    if event["type"] == "DELETED":
        known.pop(metadata.get("name", ""), None)
    elif event["type"] in ("ADDED", "MODIFIED"):
        known[metadata["name"]] = item
    return metadata.get("resourceVersion")


def _owner_reference(job: Object) -> Object:
    metadata = job["metadata"]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": False,  # the opposite needs rights on the RayJob's finalizers
    }


def _is_owned(config_map: Object, job: Object) -> bool:
    owners = config_map["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == job["metadata"]["uid"] for owner in owners)
