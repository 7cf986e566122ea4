"""The chart as Helm's own library renders it, for tests."""

from functools import cache
from pathlib import Path

import helm_python
import yaml

from inpaint.cluster.runtime import RUNTIME_KEY, parse_runtime

CHART = Path(__file__).parents[1] / "helm"
VALUE_FILES = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*.yaml"))}
ALL = ["default", *VALUE_FILES]


@cache
def chart():
    return helm_python.Chart.load(str(CHART))


def values_of(name):
    return yaml.safe_load(VALUE_FILES[name].read_text()) if name != "default" else {}


def render(values, **options):
    files = chart().render(values, name="inpaint", namespace="training", **options)
    notes = next(text for name, text in files.items() if name.endswith("NOTES.txt"))
    objects = [
        item for name, text in sorted(files.items()) if not name.endswith(".txt")
        for item in yaml.safe_load_all(text) if item
    ]  # fmt: skip
    return objects, notes


@cache
def rendered(name):
    return render(values_of(name))


def of_kind(objects, kind):
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def runtime_of(objects):
    (text,) = [item["data"][RUNTIME_KEY] for item in objects if RUNTIME_KEY in item.get("data", {})]
    return parse_runtime(text, place="rendered")


def merged(values):
    return chart().merge_values(values)
