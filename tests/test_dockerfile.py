"""The Dockerfile and the release workflow, parsed: pinned, unprivileged, signed."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def instructions():
    """(word, text) of each instruction, with continued lines joined and comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def stages():
    """Instructions of each stage, by name."""
    found, current = {"": []}, ""
    for word, text in instructions():
        if word == "FROM":
            current = text.split(" AS ")[1]
            found[current] = []
        found[current].append((word, text))
    return found


def texts(stage, word):
    return [text for each, text in stages()[stage] if each == word]


def arguments():
    return dict(text.partition("=")[::2] for text in texts("", "ARG"))


def test_every_base_is_pinned_by_a_digest_argument():
    sources = [text.split(" AS ")[0] for word, text in instructions() if word == "FROM"]
    outside = [source for source in sources if source not in stages() and source != "base-${VARIANT}"]
    assert outside == ["${CUDA_IMAGE}@${CUDA_DIGEST}", "${CPU_IMAGE}@${CPU_DIGEST}"]
    for name in ("CUDA_DIGEST", "CPU_DIGEST"):
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", arguments()[name])
    assert "cuda:" in arguments()["CUDA_IMAGE"]
    assert arguments()["VARIANT"] == "cuda"


def test_it_is_built_in_stages_and_only_the_environment_is_taken_over():
    assert list(stages())[1:] == ["base-cuda", "base-cpu", "base", "build", "final"]
    assert texts("final", "COPY") == ["--from=build /opt/inpaint /opt/inpaint"]


def test_the_last_stage_runs_as_1000_and_not_as_root():
    users = texts("final", "USER")
    assert users == ["1000:1000"]
    last_run = max(number for number, (word, _) in enumerate(stages()["final"]) if word == "RUN")
    assert last_run < [word for word, _ in stages()["final"]].index("USER")


def test_what_kuberay_and_torch_need_is_there():
    (packages,) = texts("base", "RUN")
    assert {"bash", "wget", "gcc", "g++", "python3", "python3-dev"} <= set(packages.split())
    profile = " ".join(texts("final", "RUN"))
    assert "/etc/profile.d/inpaint.sh" in profile  # a login shell keeps our Python first


def test_dependencies_are_the_pinned_ones():
    installs = [text for text in texts("build", "RUN") if "pip install" in text]
    assert installs
    assert all("--constraint constraints.txt" in text for text in installs)
    assert "https://download.pytorch.org/whl/cpu" in installs[0]
    assert "[train]" in installs[0]


def test_compiled_code_goes_where_a_volume_is():
    env = " ".join(texts("final", "ENV"))
    for name, folder in {"TORCHINDUCTOR": "inductor", "TRITON": "triton", "NUMBA": "numba"}.items():
        assert f"{name}_CACHE_DIR=/cache/{folder}" in env
    assert "install -d -o 1000 -g 1000 /cache" in " ".join(texts("final", "RUN"))


def test_labels_say_where_it_comes_from():
    (labels,) = texts("final", "LABEL")
    for name in ("title", "description", "licenses", "version", "revision", "created", "source"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_no_secret_and_nothing_unneeded_enters_the_image():
    assert (ROOT / ".dockerignore").read_text().startswith("*\n")
    names = " ".join(f"{word} {text}" for word, text in instructions())
    assert not re.search(r"(?i)password|secret|token|api_key", names)
    assert not any(word == "ADD" for word, _ in instructions())


def workflow():
    return yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())


def steps():
    return [step for job in workflow()["jobs"].values() for step in job["steps"]]


def test_every_action_is_pinned_by_its_commit():
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name) for name in used)


def test_image_and_chart_are_signed_and_carry_a_bill_of_materials():
    commands = " ".join(step.get("run", "") for step in steps())
    assert "cosign sign --yes" in commands
    assert "cosign attest --yes --type spdxjson" in commands
    assert "cosign verify" in commands
    (build,) = [step["with"] for step in steps() if "build-push-action" in step.get("uses", "")]
    assert build["sbom"] is True
    assert build["provenance"] == "mode=max"
    assert any("sbom-action" in step.get("uses", "") for step in steps())


def test_a_release_has_only_the_rights_it_needs():
    assert workflow()["permissions"] == {}
    assert workflow()["jobs"]["image"]["permissions"] == {
        "contents": "read", "packages": "write", "id-token": "write", "attestations": "write",
    }  # fmt: skip


def test_both_variants_are_released():
    matrix = workflow()["jobs"]["image"]["strategy"]["matrix"]["include"]
    assert {each["variant"]: each["platforms"] for each in matrix} == {
        "cuda": "linux/amd64", "cpu": "linux/amd64,linux/arm64",
    }  # fmt: skip
