"""The runtime is strict: what it does not know or cannot be is refused with its path."""

import pytest

from inpaint.cluster.quantity import cores, quantity
from inpaint.cluster.runtime import Runtime, Shutdown, parse_runtime
from inpaint.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagee: {}", "imagee is not a setting of Runtime; did you mean image"),
        ("head: {cpu: 2}", "did you mean cpus"),
        ("head: {memory: 2GiB}", "head.memory"),
        ("head: {memory: 2Gi, shm: 2Gi}", "shm 2Gi is counted inside memory 2Gi"),
        ("submissionMode: SidecarMode", "submissionMode"),
        ("runAsUser: 0", "runAsUser"),
        ("queue: {kind: kueue}", "kind kueue with name ''"),
        ("queue: {kind: none, name: x}", "kind none with name 'x'"),
        ("queue: {kind: kueue, name: x}\nautoscaler: {enabled: true}", "autoscaler.enabled: false"),
        ("store: {root: /elsewhere, existingClaim: c}", "not on the claim"),
        ("store: {root: /store2/lab, existingClaim: c}", "not on the claim"),
        ("workerGroups: {}", "a run needs at least one group"),
        ("workerGroups: {Big: {cpus: 1}}", "workerGroups.Big"),
        ("head: {labels: {ray.io/x: y}}", "belongs to the KubeRay operator"),
        ("timeouts: {queueSeconds: 0}", "timeouts.queueSeconds"),
        ("[1]", "expected a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_runtime_is_refused_with_its_path(text, message):
    with pytest.raises(ConfigError) as error:
        parse_runtime(text, place="ConfigMap inpaint-runtime")
    assert message in str(error.value)
    assert str(error.value).startswith("ConfigMap inpaint-runtime: ")


def test_nothing_at_all_is_the_defaults():
    assert parse_runtime("{}", place="x") == Runtime()


def test_the_grace_period_holds_drain_and_checkpoint():
    assert Shutdown(drain_seconds=20, checkpoint_seconds=40).grace_seconds == 75


@pytest.mark.parametrize(("text", "number"), [("8Gi", 8 * 2**30), ("500m", 0.5), ("2", 2), ("1.5k", 1500), ("3M", 3e6)])
def test_quantities_are_numbers(text, number):
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["2GiB", "", "-1Gi", "1 Gi", "Gi"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(ValueError, match="not a Kubernetes quantity"):
        quantity(text)


def test_cores_are_written_as_kubernetes_does():
    assert [cores(4), cores(0.5), cores(1.25)] == ["4", "500m", "1250m"]
