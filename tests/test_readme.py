"""Every command that the README shows exists, with the arguments and options it is shown with."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from inpaint.cli import app
from inpaint.config import list_presets

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def commands():
    """The `inpaint …` lines of the README's shell blocks, continuation lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.startswith("inpaint ")]


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_parses(line):
    command, arguments = typer.main.get_command(app), shlex.split(line)[1:]
    context = command.make_context("inpaint", list(arguments), resilient_parsing=True)
    while hasattr(command, "resolve_command"):
        name, command, arguments = command.resolve_command(context, arguments)
        if hasattr(command, "resolve_command"):
            context = command.make_context(name, list(arguments), parent=context, resilient_parsing=True)
            arguments = [*context._protected_args, *context.args]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("INPAINT_ROOT", raising=False)
        command.make_context(name, list(arguments), parent=context)


def test_presets_named_in_the_readme_exist():
    named = set(re.findall(r"inpaint (?:submit )?train ([a-z][-a-z0-9]*)", TEXT))
    assert named
    assert named <= set(list_presets())


def test_every_file_on_the_map_exists():
    section = TEXT.split("## Map of the code")[1]
    for place in re.findall(r"`([a-z_]+(?:/[a-z_.]+)*/?)`", section):
        if "/" in place:
            assert (ROOT / place).exists(), place
