"""Finding secrets that were written out where only their names belong.

A message names the place and the kind of secret, never the secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from inpaint.errors import ConfigError

SECRET_NAME = re.compile(
    r"(?i)(^|(?<!existing)[._\-])(pass(word|wd|phrase)?|secret(_?access)?(_?key)?|(auth_?|access_?|session_?|api_?)?token"
    r"|(api|access|private|secret)_?key(_?id)?|credentials?)$"
)
KEY_NAME = re.compile(r"(?i)(^|[^a-z])(key|token|wandb|secret|password)([^a-z]|$)")
HEX = r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])"  # a Weights & Biases key, but in a path of a mirror a commit of Git
GAP = r"[\s=:\"']+"
SECRET_VALUES = {
    "an AWS access key": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "an AWS secret key": re.compile(r"(?<![A-Za-z0-9/+=])(?!(?:[A-Za-z0-9+]*/){3})(?=[A-Za-z0-9/+]*[A-Z])"
                                    r"(?=[A-Za-z0-9/+]*[a-z])(?=[A-Za-z0-9/+]*[0-9])[A-Za-z0-9+][A-Za-z0-9/+]{38}[A-Za-z0-9+](?![A-Za-z0-9/+=])"),
    "a Weights & Biases key": re.compile(
        rf"^\s*{HEX}\s*$|(?i:key|token|wandb|secret|passw|bearer)[\w.\-]*{GAP}(?:[\w\-]+{GAP}){{0,2}}{HEX}"
        r"|\bwandb_v[0-9]_[A-Za-z0-9_]{16,}"
    ),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password in a URL": re.compile(r"[a-z0-9+]+://[^/\s:@]+:[^/\s@]+@"),
    "a signed web token": re.compile(r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\."),
    "an access token": re.compile(r"\b(ghp|gho|ghs|github_pat|hf|glpat|xox[abp])[_\-][A-Za-z0-9_\-]{16,}"),
}  # fmt: skip


def refuse_secrets(document: Any, *, place: str) -> None:
    """Raise when a settings tree holds a secret instead of a secret's name.

    Raises:
        ConfigError: names the first such place and what it looks like.
    """
    for path, kind in find_secrets(document):
        raise ConfigError(
            f"{place}: {path or 'the value'} looks like {kind}; secrets belong in a Kubernetes Secret that the runtime "
            "names (s3.existingSecret, wandb.existingSecret, extraEnvFrom), or in this machine's environment"
        )


def refuse_secret_arguments(arguments: Iterable[str]) -> None:
    """The same for words of a command line (`path=value` assignments, URLs).

    Raises:
        ConfigError: without repeating the value.
    """
    for argument in arguments:
        path, _, value = argument.partition("=")
        refuse_secrets({path: value} if value else path, place="command line")


def find_secrets(document: Any, path: str = "", *, name_of_value: str = "") -> Iterator[tuple[str, str]]:
    """Every (dotted path, kind) in nested settings or manifests at which a secret seems to be written out.

    Args:
        document: settings, a manifest, or a part of one.
        path: where it stands.
        name_of_value: of an environment entry whose value it is.
    """
    if isinstance(document, Mapping):
        name, value = document.get("name"), document.get("value")
        if isinstance(name, str) and isinstance(value, str) and value and SECRET_NAME.search(name):
            yield f"{path}.{name}".lstrip("."), "a secret, by its name"
        for key, child in document.items():
            here = f"{path}.{key}".lstrip(".")
            if isinstance(child, str) and child and SECRET_NAME.search(_snake(str(key))):
                yield here, "a secret, by its name"
            else:
                yield from find_secrets(child, here, name_of_value=str(name) if key == "value" else "")
    elif isinstance(document, list | tuple):
        for position, child in enumerate(document):
            yield from find_secrets(child, f"{path}[{position}]")
    elif isinstance(document, str):
        yield from ((path, kind) for kind, pattern in SECRET_VALUES.items() if pattern.search(document))
        if re.search(HEX, document) and KEY_NAME.search(_snake(f"{path} {name_of_value}")):
            yield path, "a key, by its name"


def _snake(key: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", key)
