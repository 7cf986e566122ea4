"""Pods and logs as an API server gives them."""

RUN = {"inpaint/run": "paris", "inpaint/kind": "train"}


def pod(name, component, phase="Running"):
    labels = RUN | {"app.kubernetes.io/component": component}
    if component != "submitter":
        labels["ray.io/node-type"] = component
    conditions = [{"type": "Ready", "status": "True"}]
    return {"metadata": {"name": name, "labels": labels}, "status": {"phase": phase, "conditions": conditions}}


def lines(*texts, start=0):
    return [(f"2026-11-21T12:00:{number:02d}.000000000Z", text) for number, text in enumerate(texts, start)]
