"""Who reaches whom under the chart's network policies, and what its notes say of guards that are down."""

import re

import pytest

from tests.chart import of_kind, render, rendered, values_of


def policy(name, suffix):
    return of_kind(rendered(name)[0], "NetworkPolicy")[f"inpaint-{suffix}"]["spec"]


def ports(rules):
    return {port["port"] for rule in rules for port in rule.get("ports", [])}


def test_ray_pods_talk_to_each_other_to_names_and_to_the_store_only():
    spec = policy("s3-secret", "ray")
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert ports(spec["egress"]) == {53, 443, 9000}  # 9000: the port of s3.endpoint
    assert len(spec["ingress"]) == 1  # each other; nobody else on any port
    assert ports(anywhere(policy("default", "ray")["egress"])) == {53, 443}
    assert ports(policy("small", "ray")["egress"]) == {53, 443, 9000}


def anywhere(rules):
    return [rule for rule in rules if "to" not in rule]


@pytest.mark.parametrize(
    ("values", "port"),
    [
        ({"wandb": {"baseUrl": "https://wandb.lab:8443"}}, 8443), ({"wandb": {"baseUrl": "http://wandb.lab"}}, 80),
        ({"s3": {"endpoint": "http://s3.lab"}}, 80), ({"s3": {"endpoint": "https://s3.lab"}}, 443),
        ({"s3": {"endpoint": "https://[fd00::1]:9443"}}, 9443),
    ],
)  # fmt: skip
def test_the_ports_of_the_servers_that_the_values_name_are_open(values, port):
    objects, _ = render({**values, "networkPolicy": {"egressPorts": []}})
    spec = of_kind(objects, "NetworkPolicy")["inpaint-ray"]["spec"]
    assert ports(anywhere(spec["egress"])) == {53, port}


@pytest.mark.parametrize("suffix", ["ray", "api"])  # head and workers; helm test, which writes to the store too
def test_pods_without_a_secret_may_ask_their_node_or_eks_for_keys(suffix):
    rule = {
        "to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}, {"ipBlock": {"cidr": "169.254.170.23/32"}}],
        "ports": [{"port": 80, "protocol": "TCP"}],
    }  # as AWS documents its instance metadata service and the Pod Identity agent
    assert rule in policy("default", suffix)["egress"]
    assert 80 not in ports(policy("s3-secret", suffix)["egress"])
    assert 80 not in ports(policy("cloud-identity", suffix)["egress"])  # its keys come from the token service, at 443
    objects, _ = render({"networkPolicy": {"credentialEndpoints": ["fd00:ec2::23/128"]}})
    egress = of_kind(objects, "NetworkPolicy")[f"inpaint-{suffix}"]["spec"]["egress"]
    assert {**rule, "to": [{"ipBlock": {"cidr": "fd00:ec2::23/128"}}]} in egress


def test_only_submitter_and_operator_reach_the_dashboard():
    (rule,) = policy("default", "dashboard")["ingress"]
    assert rule["ports"] == [{"port": 8265, "protocol": "TCP"}]
    submitter, operator = rule["from"]
    assert submitter["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "submitter"
    assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    assert operator["namespaceSelector"] == {}
    objects, _ = render({"networkPolicy": {"operatorNamespaceLabels": {"kubernetes.io/metadata.name": "ray"}}})
    (rule,) = of_kind(objects, "NetworkPolicy")["inpaint-dashboard"]["spec"]["ingress"]
    assert rule["from"][1]["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "ray"}}


def test_the_submitter_reaches_the_head_only():
    spec = policy("default", "submitter")
    assert ports(spec["egress"]) == {53, 8265}
    assert "ingress" not in spec


def test_metrics_are_open_to_monitoring_only():
    (_, rule) = policy("monitoring", "ray")["ingress"]
    assert rule["ports"] == [{"port": 8080, "protocol": "TCP"}]
    assert rule["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}


def test_the_api_server_is_for_test_clean_up_and_an_autoscaling_head():
    def who(name):
        return policy(name, "api")["podSelector"]["matchExpressions"][0]["values"]

    assert who("default") == ["test", "clean-up"]
    assert who("autoscaler") == ["test", "clean-up", "head"]


def test_guards_can_be_taken_away_and_notes_warn():
    objects, notes = rendered("open")
    for kind in ("NetworkPolicy", "PodDisruptionBudget", "Role", "RoleBinding"):
        assert not of_kind(objects, kind)
    warnings = [line for line in notes.splitlines() if line.startswith("WARNING")]
    assert {re.split(r"[ ;]", line)[1] for line in warnings} == {
        "store.root", "dashboardToken", "networkPolicy.enabled", "podDisruptionBudget.head",
    }  # fmt: skip


def warnings(values):
    return [line for line in render(values)[1].splitlines() if line.startswith("WARNING")]


def test_notes_say_whom_pods_without_keys_ask_and_when_they_cannot():
    store = {"store": {"root": "s3://lab/inpaint"}}
    (told,) = warnings(store)
    assert told.endswith("pods reach the store only if their nodes or EKS Pod Identity give them keys.")
    (told,) = warnings({**store, "networkPolicy": {"credentialEndpoints": []}})
    assert told.endswith("and with networkPolicy.credentialEndpoints empty they cannot ask.")


def test_notes_warn_of_metrics_that_nobody_may_read():
    monitored = {**values_of("monitoring"), "store": {"root": "s3://lab/x"}, "s3": {"existingSecret": "keys"}}
    assert warnings(monitored) == []
    (told,) = warnings({**monitored, "networkPolicy": {}})
    assert told.startswith("WARNING: networkPolicy.monitoringNamespaceLabels is empty; the network policy keeps Prom")
    assert len(warnings({**monitored, "networkPolicy": {"enabled": False}})) == 1  # that everybody may
    rule = {"from": [{"namespaceSelector": {}}], "ports": [{"port": 8080}]}
    assert warnings({**monitored, "networkPolicy": {"extraIngress": [rule]}}) == []


def test_notes_give_the_very_next_command():
    notes = rendered("s3-secret")[1]
    assert "helm test inpaint -n training" in notes
    assert "inpaint submit train tiny -n training --runtime inpaint-runtime\n" in notes
    assert "WARNING" not in notes
    assert "--root s3://BUCKET/PREFIX" in rendered("default")[1]
