"""The health panel sees every method's discriminators, whatever their updates are called."""

import pytest

from inpaint.config import list_presets, load_run
from inpaint.evaluation.health import read_health
from inpaint.methods import build_method

PRESETS = [preset for preset in list_presets() if preset.endswith("tiny")]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_discriminator_of_a_method_is_in_the_panel(preset):
    run = load_run(preset, assignments=["feature_weights.vgg16=random", "feature_weights.vgg19=random"])
    judges = {u.name for stage in build_method(run).stages() for u in stage.updates if u.judges()}

    assert judges
    for judge in judges:
        row = {"step": 1, f"{judge}/real": 0.01, f"{judge}/filled": 0.02, f"{judge}/loss": 0.03}
        found = read_health([row])
        assert found.alarms == [f"{judge} tells every fill from the truth (its terms sum to 0.03)"]
        assert set(found.plots["discriminator: real and filled"]) == {f"{judge}/real", f"{judge}/filled"}
