"""values.yaml, its schema and the table of helm/README.md say the same; wrong values are refused by Helm itself.

The table is written anew by `INPAINT_WRITE_TABLE=1 pytest tests/test_chart_values.py`.
"""

import fnmatch
import json
import os
import re

import helm_python
import pytest

from tests.chart import CHART, chart

BEGIN, END = "<!-- values -->\n", "<!-- end of values -->\n"


@pytest.mark.parametrize(
    "values",
    [
        {"imagee": {}}, {"image": {"tagg": "x"}}, {"image": {"digest": "sha256:short"}},
        {"image": {"pullPolicy": "Maybe"}},
        {"submissionMode": "SidecarMode"}, {"submissionMode": "Bogus"}, {"runAsUser": 0}, {"head": {"memory": "2GiB"}},
        {"head": {"memory": 8}}, {"head": {"cpus": 0}}, {"head": {"labels": {"ray.io/node-type": "x"}}},
        {"head": {"extraVolumes": [{"name": "x", "hostPath": {"path": "/"}}]}}, {"queue": {"kind": "kueue"}},
        {"queue": {"kind": "none", "name": "x"}},
        {"queue": {"kind": "kueue", "name": "x"}, "autoscaler": {"enabled": True}},
        {"env": {"WANDB_API_KEY": "x"}}, {"head": {"extraEnv": [{"name": "MY_TOKEN", "value": "x"}]}},
        {"s3": {"secretKey": "x"}}, {"s3": {"endpoint": "https://user:pw@host"}}, {"wandb": {"apiKey": "x"}},
        {"workerGroups": {"gpu": {"gpu": 1}}}, {"workerGroups": {"tpu": {"gpus": 1}}}, {"workerGroups": {"Big": {}}},
        {"workerGroups": {"gpu": {"gpus": -1}}}, {"timeouts": {"queueSeconds": 0}}, {"retries": {"newClusters": -1}},
        {"rayVersion": "2.51.0"}, {"rayVersion": "latest"}, {"networkPolicy": {"egressPorts": [0]}},
        {"networkPolicy": {"credentialEndpoints": ["169.254.169.254"]}},
        {"metrics": {"alerts": {"headMemoryShare": 2}}}, {"rbac": {"subjects": [{"kind": "Robot", "name": "x"}]}},
        {"store": {"root": "gs://bucket"}}, {"standingCluster": {"replicas": {"cpu": -1}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_value_is_refused_by_the_schema(values):
    with pytest.raises(helm_python.HelmValuesError):
        chart().render(values, name="inpaint", namespace="training")


def value_lines():
    """(path, comment above it) of every value in values.yaml that is not a group with children."""
    stack, found, comment = [], [], None
    for line in (CHART / "values.yaml").read_text().splitlines():
        stripped = line.strip()
        if stripped.startswith("# --"):
            comment = stripped
            continue
        match = re.match(r"( *)([A-Za-z0-9_./-]+):(.*)", line)
        if not match or stripped.startswith(("#", "- ")):
            comment = None if not stripped else comment
            continue
        depth = len(match[1]) // 2
        stack = [*stack[:depth], match[2]]
        found.append((tuple(stack), match[3].strip(), comment))
        comment = None
    return found


def test_every_value_has_its_line():
    inside = ("tolerations", "operatorPodLabels", "labels", "replicas")  # examples below a documented value
    for path, value, comment in value_lines():
        if value and not any(part in inside for part in path[:-1]):
            assert comment, ".".join(path)
            assert comment.endswith("."), comment


def test_every_value_is_in_the_schema_and_the_other_way_round():
    schema = json.loads((CHART / "values.schema.json").read_text())

    def names(node):
        return set(node.get("properties", {}))

    values = chart().merge_values({})
    assert names(schema) - {"global"} == set(values)
    for name, node in schema["properties"].items():
        if node.get("additionalProperties") is False:
            assert names(node) == set(values[name]), name
    assert names(schema["properties"]["workerGroups"]["additionalProperties"]) == set(values["workerGroups"]["gpu"])


def table():
    """One Markdown row for each documented value: path, default, what its line says."""
    rows = ["| value | default | meaning |", "|---|---|---|"]
    for path, value, comment in value_lines():
        if comment:
            shown = f"`{value}`" if value else "see values.yaml"
            rows.append(f"| `{'.'.join(path)}` | {shown} | {comment.removeprefix('# -- ')} |")
    return "\n".join(rows) + "\n"


def test_the_table_in_the_readme_lists_every_value():
    path = CHART / "README.md"
    text = path.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    if os.environ.get("INPAINT_WRITE_TABLE"):
        path.write_text(before + BEGIN + table() + END + after)
    assert path.read_text() == before + BEGIN + table() + END + after
    assert table().count("\n") > 100


def test_the_values_that_the_main_readme_names_are_there():
    section = (CHART.parent / "README.md").read_text().split("### Every value of the chart")[1].split("\n## ")[0]
    rows = "\n".join(row for row in section.splitlines() if row.startswith("| `"))
    named = re.findall(r"`([\w.*]+\.[\w.*]+)`", rows)
    there = {".".join(path) for path, _, _ in value_lines()}
    there |= {".".join(path[:end]) for path, _, _ in value_lines() for end in range(1, len(path))}
    assert len(named) > 10
    assert [name for name in named if not fnmatch.filter(there, name.replace("NAME", "gpu"))] == []
