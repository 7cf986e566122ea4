"""Settings: strict, frozen, torch-free. `load_run` turns a preset and overrides into a checked `RunConfig`."""

from inpaint.config.base import Strict, apply_overrides, parse_overrides
from inpaint.config.run import RunConfig, list_presets, load_run

__all__ = ["RunConfig", "Strict", "apply_overrides", "list_presets", "load_run", "parse_overrides"]
