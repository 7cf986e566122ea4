"""Run settings: strict, overridable by path, with an error that helps."""

import subprocess
import sys

import pytest

from inpaint.config import list_presets, load_run
from inpaint.config.base import apply_overrides, parse_overrides, validate
from inpaint.config.run import RunConfig
from inpaint.errors import ConfigError


@pytest.mark.parametrize("preset", list_presets())
def test_every_preset_is_valid_and_survives_a_round_trip(preset):
    run = load_run(preset)
    assert run.preset == preset
    assert validate(RunConfig, run.to_dict(), place="round trip") == run


def test_an_override_reaches_its_setting():
    run = load_run("tiny", assignments=["method.weights.style=2.5", "stages.gan.steps=7"], name="a", root="/r")
    assert run.method.weights.style == 2.5
    assert run.total_steps == 7
    assert run.url == "/r/runs/a"


def test_a_step_belongs_to_the_stage_in_which_it_is_made():
    run = load_run("edge-texture-tiny", assignments=["stages.edge.steps=3", "stages.texture.steps=2"])
    assert [run.stage_at(step) for step in (0, 1, 3, 4, 5)] == ["edge", "edge", "edge", "texture", "texture"]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("method.weights.styl=3", "tiny: method.weights.styl is not a setting of method.weights; did you mean style?"),
        ("trainin.compile=true", "tiny: trainin is not a setting of RunConfig; did you mean training?"),
        ("method.blocks=many", "tiny: method.blocks 'many': input should be a valid integer"),
        ("method.blocks=0", "tiny: method.blocks 0: input should be greater than or equal to 1"),
        ("stages.gam.steps=1", "stages.gam is not a stage of isnet .*did you mean gan"),
        ("data.image_size=60", "data.image_size 60 is not a multiple of 16"),
        ("data.image_size=16", "data.image_size 16 leaves the discriminators of isnet no patch; use 32 or more"),
        ("resources.num_workers=3", "global_batch 8 does not divide into 3 workers"),
        ("name=No_Such", "'No_Such' cannot name a run"),
        ("method.weights.l1=.nan", "method.weights.l1 nan"),
        ("stages.gan.steps=0", "every stage has 0 steps"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_place_and_what_was_expected(assignment, message):
    with pytest.raises(ConfigError, match=message):
        load_run("tiny", assignments=[assignment])


def test_an_unknown_preset_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="isnet-plces2 is not a preset; did you mean isnet-places2?"):
        load_run("isnet-plces2")


def test_an_assignment_without_a_value_is_refused():
    with pytest.raises(ConfigError, match="expected path=value"):
        parse_overrides(["method.blocks"])


def test_numbers_in_scientific_notation_are_numbers():
    assert parse_overrides(["a.b=1e-4", "c=3", "d=true", "e=x1"]) == {"a.b": 1e-4, "c": 3, "d": True, "e": "x1"}


def test_overriding_does_not_change_the_original():
    values = {"a": {"b": 1}}
    assert apply_overrides(values, {"a.b": 2, "a.c.d": 3}) == {"a": {"b": 2, "c": {"d": 3}}}
    assert values == {"a": {"b": 1}}


def test_a_run_file_is_read_like_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: {name: isnet}\nstages: {gan: {steps: 5}}\n"
                    "data: {dataset: x, image_size: 64}\nholes: {kind: half}\n")  # fmt: skip
    assert load_run(str(path)).name == "mine"


def test_settings_load_without_torch():
    code = "import sys; sys.modules['torch'] = None; import inpaint.config as c; print(c.load_run('tiny').method.name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "isnet"


def test_changing_one_setting_of_a_default_group_keeps_the_others():
    run = load_run("context-encoder-paris", assignments=["method.local_optimizer.learning_rate=1e-3"])
    assert run.method.local_optimizer.learning_rate == 1e-3
    assert run.method.local_optimizer.betas == (0.5, 0.999)  # the method's own; Adam's would be (0.9, 0.999)
    assert run.method.global_optimizer.learning_rate == 3e-4


def test_an_optimizer_that_counts_on_the_host_is_refused_with_cuda_graphs():
    with pytest.raises(ConfigError, match=r"method\.\w+_optimizer: ranger21 counts its steps on the host"):
        load_run("edge-texture-tiny", assignments=["training.cuda_graphs=true"])
    adam = "{kind: adam, learning_rate: 0.001}"
    names = load_run("edge-texture-tiny").method.optimizers()
    given = [f"method.{name}={adam}" for name in names]
    given += ["resources.num_workers=1", "resources.gpus_per_worker=1"]
    assert load_run("edge-texture-tiny", assignments=["training.cuda_graphs=true", *given]).training.cuda_graphs


@pytest.mark.parametrize(
    ("preset", "assignments", "networks"),
    [
        ("isfrnet-celeba", [], ("vgg16",)),
        ("isfrnet-celeba", ["method.variant=psp_ifr", "stages.sfr.steps=0"], ()),
        ("edge-texture-paris", [], ("vgg19",)),
        ("edge-texture-paris", ["stages.texture.steps=0"], ()),
        ("isnet-paris", ["method.weights.perceptual=0", "method.weights.style=0"], ()),
    ],
)
def test_feature_networks_are_those_of_stages_that_are_trained(preset, assignments, networks):
    assert load_run(preset, assignments=assignments).feature_networks == networks


def test_another_kind_takes_over_the_settings_that_it_has_too():
    run = load_run("edge-texture-paris", assignments=["method.generator_optimizer.kind=adam", "holes.kind=half"])
    ranger = load_run("edge-texture-paris").method.generator_optimizer
    adam = run.method.generator_optimizer
    assert (adam.kind, adam.learning_rate, adam.betas) == ("adam", ranger.learning_rate, ranger.betas)
    assert run.holes.kind == "half"


def test_a_kind_that_is_not_known_is_refused_by_its_own_name():
    with pytest.raises(ConfigError, match="holes.kind 'halve' is not one of .*; did you mean half"):
        load_run("edge-texture-paris", assignments=["holes.kind=halve"])


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["training.cuda_graphs=true", "resources.num_workers=1"], "one worker on a GPU, and .* for 1 with 0"),
        (["training.cuda_graphs=true", "resources.gpus_per_worker=1"], "asks for 2 with 1 GPUs each; set num"),
        (["training.compile=true", "training.activation_checkpointing=true"], "exclude each other; choose one"),
        (["training.cuda_graphs=true", "training.activation_checkpointing=true"], "cuda_graphs and activation"),
        (
            ["method.gan_loss=nsgan", "method.generator_adversarial=neg_hinge"],
            "method: generator_adversarial is neg_hinge, but gan_loss is nsgan; drop one of them",
        ),
        (
            ["evaluation.every=70", "checkpoints.every=100"],
            "evaluation.every 70 and checkpoints.every 100 fall together only each 700 steps",
        ),
        (["training.max_rollbacks=5"], "training: max_rollbacks is set, but only not_finite: rollback goes back"),
        (["data.crop_share=0.5"], "data: crop_share 0.5 is set, which only crop: random reads; set crop_share: 1"),
        (
            ["data.crop=random", "data.crop_share=0.5", "data.decoded_cache_gib=1"],
            "data: decoded_cache_gib keeps whole images, and crop_share shows none",
        ),
        (["data.window_shards=8"], "data: window_shards is set, but only shuffle: window reads it"),
    ],
)
def test_settings_that_contradict_each_other_or_have_no_effect_are_refused(assignments, message):
    with pytest.raises(ConfigError, match=message):
        load_run("tiny", assignments=assignments)


@pytest.mark.parametrize("preset", list_presets())
def test_a_loss_whose_every_weight_is_0_is_refused(preset):
    run = load_run(preset)
    field, weights = next((key, value) for key, value in run.method if key.endswith("weights"))
    terms = [info.alias or term for term, info in type(weights).model_fields.items()]
    none = [f"method.{field}.{term}=0" for term in terms]
    with pytest.raises(ConfigError, match=f"method.{field}: .* are all 0, so nothing would be learned"):
        load_run(preset, assignments=none)
    load_run(preset, assignments=none[1:])


@pytest.mark.parametrize("root", ["s3://", "s3:///lab", "s3:/lab", "", " "])
def test_a_root_that_names_no_place_is_refused(root):
    with pytest.raises(ConfigError, match="root: .* is no place to keep a run; give s3://bucket/prefix or a folder"):
        load_run("tiny", root=root)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("holes.kind=stroke", "tiny: holes.kind 'stroke' is not one of strokes, .*; did you mean strokes?"),
        ("method.name=isnot", "tiny: method.name 'isnot' is not one of isnet, .*; did you mean isnet?"),
        ("holes={}", "tiny: holes.kind field required"),
        ("feature_weights.sha256={vgg91: " + 64 * "0" + "}", r"feature_weights.sha256.vgg91.* 'vgg19' or 'vgg16'"),
        ("feature_weights.sha256={vgg19: d34d}", "feature_weights.sha256.vgg19 'd34d'"),
        (f"seed={2**63}", f"tiny: seed {2**63}: input should be less than"),
        ("evaluation.protocol=all", "tiny: evaluation.protocol: all scores by every protocol, and training by one"),
        ("evaluation.seed=-1", "tiny: evaluation.seed -1: input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_choice_is_named_with_the_right_ones(assignment, message):
    with pytest.raises(ConfigError, match=message):
        load_run("tiny", assignments=[assignment])


def test_a_group_of_settings_that_stands_twice_in_a_file_is_refused_instead_of_half_read(tmp_path):
    (tmp_path / "run.yaml").write_text("training: {ema: 0.9}\nseed: 1\ntraining: {clip_gradient_norm: 1}\n")

    with pytest.raises(ConfigError, match=r"run.yaml: not YAML \(training stands here twice; drop one of them"):
        load_run(str(tmp_path / "run.yaml"))
