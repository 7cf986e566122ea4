"""Secrets written out are found, their names are not, and messages never repeat them."""

import pytest

from inpaint.cluster.runtime import parse_runtime
from inpaint.cluster.secrets import find_secrets, refuse_secret_arguments
from inpaint.errors import ConfigError

PLANTED = {
    "AWS access key": "AKIAIOSFODNN7EXAMPLE",  # the cloud's own documentation example
    "AWS secret key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "Weights & Biases key": "0123456789abcdef0123456789abcdef01234567",
    "newer Weights & Biases key": "wandb_v1_" + "Ab3" * 10,
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
    "password in a URL": "https://user:hunter2@s3.lab",
    "signed web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.x",
    "access token": "ghp_" + "a1B2" * 9,
}
HARMLESS = [
    "s3://lab/inpaint/shards/places2/train", "arn:aws:iam::111122223333:role/inpaint", "isnet-places2",
    "sha256:36cccda4bebc3b0b1ebe1907ead8169cf144d45df890be871b36b304cf91145a", "https://s3.lab.example:9000",
    "/store/Datasets/Places2/Train256/Part0001/Shards", "python -m ray_jobs.train /etc/inpaint/run.yaml", "2.60.0",
]  # fmt: skip


@pytest.mark.parametrize("value", PLANTED.values(), ids=PLANTED)
def test_a_secret_is_found_wherever_it_lies_and_never_repeated(value):
    document = {"spec": {"env": [{"name": "PLAIN", "value": value}], "list": [["x", value]]}}
    assert {path for path, _ in find_secrets(document)} == {"spec.env[0].value", "spec.list[0][1]"}
    with pytest.raises(ConfigError) as error:
        refuse_secret_arguments([f"tracking.entity={value}"])
    assert value not in str(error.value)
    assert "tracking.entity" in str(error.value)


@pytest.mark.parametrize(
    "name", ["password", "WANDB_API_KEY", "aws_secret_access_key", "s3.secretAccessKey", "HF_TOKEN"]
)
def test_a_name_that_says_secret_is_enough(name):
    assert list(find_secrets({name: "short"}))
    assert list(find_secrets([{"name": name, "value": "short"}]))


KEY = PLANTED["Weights & Biases key"]


@pytest.mark.parametrize(
    "document",
    [
        KEY, f" {KEY}\n", f"WANDB_API_KEY={KEY} python -m train", f"wandb login --relogin {KEY}", f'api_key: "{KEY}"',
        f"https://wandb.lab/?token={KEY}", f"Authorization: Bearer {KEY}", f"https://api:{KEY}@wandb.lab",
        {"wandb": {"baseUrl": f"https://lab/{KEY}"}}, {"note": [f"x {KEY}"], "apiKey": [f"x {KEY}"]},
        {"env": [{"name": "MY_WANDB_URL", "value": f"https://lab/{KEY}"}]}, {"tracking.key_file": f"/keys/{KEY}"},
    ],
    ids=str,
)  # fmt: skip
def test_forty_hex_digits_are_a_key_alone_or_where_something_says_key(document):
    assert list(find_secrets(document))


@pytest.mark.parametrize(
    "value",
    [
        f"s3://lab/mirror/{KEY}/vgg19.pth", f"s3://lab/vgg19/{KEY}", f"s3://lab/tokens/{KEY}/x", f"{KEY}.tar",
        f"lab/wandb/{KEY}.pth", f"git+https://lab/inpaint@{KEY}", f"commit {KEY}", f"keypoints-{KEY}",
    ],
)  # fmt: skip
def test_a_commit_of_git_in_a_path_passes(value):
    assert list(find_secrets({"data": {"train": value}, "monkey": value})) == []
    refuse_secret_arguments([value, f"feature_weights.vgg19={value}"])


@pytest.mark.parametrize("value", HARMLESS)
def test_ordinary_values_pass(value):
    assert list(find_secrets({"value": value})) == []


def test_names_of_secrets_pass():
    runtime = {
        "s3": {"existingSecret": "keys", "accessKeyIdKey": "id", "secretAccessKeyKey": "key"},
        "wandb": {"existingSecret": "wandb"},
        "env": [{"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "API_KEY"}}}],
        "automountServiceAccountToken": False,
    }
    assert list(find_secrets(runtime)) == []


def test_a_runtime_with_a_secret_in_it_is_refused():
    with pytest.raises(ConfigError, match=r"env\.WANDB_API_KEY looks like a secret"):
        parse_runtime("env: {WANDB_API_KEY: abc}", place="ConfigMap x")
