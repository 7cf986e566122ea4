"""An evaluation as a job: resumable, the same however it is shared, nothing left behind when it is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inpaint import storage
from inpaint.config.evaluation import EvaluationRequest
from inpaint.data.index import load_index
from inpaint.errors import EvaluationError, WeightsError
from inpaint.evaluation import baselines, stamp
from inpaint.evaluation import job as jobs
from inpaint.evaluation.job import finish, prepare, run_job, score_missing
from inpaint.evaluation.parts import from_parquet, kept_parts, to_parquet
from inpaint.evaluation.pictures import open_pictures
from inpaint.evaluation.results import load_result
from tests.data.test_shards import write
from tests.evaluation.scenes import photographs
from tests.faulty_s3 import shared_server


def folder(path, count=20, size=32):
    photos = photographs(count, size=size)
    if not path.exists():
        path.mkdir()
        for name in photos.ids:
            Image.fromarray(photos.read(name)).save(path / f"{name}.png")
    return str(path)


def request(tmp_path, **values):
    settings = {"subject": "baseline:mean-colour", "data": folder(tmp_path / "photos"), "size": 32, "device": "cpu"}
    return EvaluationRequest(**settings | {"root": str(tmp_path / "root")} | values)


def test_a_job_leaves_a_result_its_pairs_scores_and_request_and_no_parts(tmp_path):
    job, result = run_job(request(tmp_path))
    assert sorted(path.name for path in (tmp_path / "root").rglob("*.*")) == [
        "pairs.json", "request.json", "result.json", "scores.parquet",
    ]  # fmt: skip
    assert load_result(job.url).to_dict() == result.to_dict()
    pairs = json.loads(storage.read_bytes(storage.join(job.url, "pairs.json")))
    assert len(pairs["pairs"]["inp-v1"]) == 20 * 6
    assert result.stamp.protocols["inp-v1"]["masks"] == pairs["masks"]["inp-v1"]


def test_a_stopped_job_scores_only_what_is_missing_and_ends_like_an_unbroken_one(tmp_path, monkeypatch):
    job = prepare(request(tmp_path))
    score_missing(job, [1])
    assert kept_parts(job.parts_url) == {1}
    with pytest.raises(EvaluationError, match="part 0 of 2 is not there"):
        finish(job)
    again, calls = prepare(request(tmp_path)), []
    fill = again.subject.fillers["one-shot"]
    again.subject.fillers["one-shot"] = lambda image, mask, names: calls.extend(names) or fill(image, mask, names)
    score_missing(again)
    assert set(calls) == set(again.plan.parts()[0])
    resumed = finish(again).to_dict()
    _, unbroken = run_job(request(tmp_path, out=str(tmp_path / "elsewhere")))
    assert resumed == unbroken.to_dict()


def test_parts_that_another_version_of_the_code_scored_are_not_gone_on_from(tmp_path, monkeypatch):
    job = prepare(request(tmp_path))
    score_missing(job, [0])
    assert kept_parts(prepare(request(tmp_path)).parts_url) == {0}
    monkeypatch.setattr("inpaint.evaluation.job.scoring_code", lambda: {"version": "0.1.0", "scoring": "other"})
    assert kept_parts(prepare(request(tmp_path)).parts_url) == set()


def test_parts_and_results_of_other_filling_code_lie_elsewhere_and_compare_all_the_same(tmp_path, monkeypatch):
    before, first = run_job(request(tmp_path))
    place = before.parts_url
    monkeypatch.setattr(jobs, "filling_code", lambda: "another Telea")
    after, second = run_job(request(tmp_path))
    assert after.parts_url != place
    assert first.stamp.differences(second.stamp, "inp-v1") == []


@pytest.mark.parametrize(
    "module", ["inpaint/imaging.py", "inpaint/evaluation/telea.py", "inpaint/methods/isnet.py", "inpaint/nn/gated.py"]
)
def test_a_change_of_any_module_that_fills_changes_the_digest_of_the_filling_code(tmp_path, monkeypatch, module):
    source = Path(jobs.__file__).parents[1]
    shutil.copytree(source, tmp_path / "inpaint", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(stamp.resources, "files", lambda package: tmp_path / package.replace(".", "/"))
    before = stamp.filling_code.__wrapped__()
    assert before == stamp.filling_code.__wrapped__()
    with (tmp_path / module).open("a") as file:
        file.write("# changed")
    assert stamp.filling_code.__wrapped__() != before


def test_an_evaluation_that_was_finished_is_read_and_not_scored_again(tmp_path, monkeypatch):
    """As after a driver that was lost between writing the result and its own end."""
    job, first = run_job(request(tmp_path))
    score_missing(job, [0])  # parts that the lost driver had not removed yet
    monkeypatch.setitem(baselines.BASELINES, "mean-colour", lambda image, mask: pytest.fail("filled again"))
    said = []
    _, second = run_job(request(tmp_path), tell=said.append)
    assert second.to_dict() == first.to_dict()
    assert said == [f"{job.url}: scored before under the same conditions, and read from there; remove it to score anew"]
    assert kept_parts(job.parts_url) == set()


def test_what_is_not_whole_is_scored_to_its_end(tmp_path):
    job, first = run_job(request(tmp_path))
    for name in ("result.json", "scores.parquet", "request.json"):
        storage.local_path(storage.join(job.url, name)).unlink()
        said = []
        _, again = run_job(request(tmp_path), tell=said.append)
        assert again.to_dict() == first.to_dict()
        assert said == []


def test_parts_keep_every_digit(tmp_path):
    job = prepare(request(tmp_path, limit=3))
    score_missing(job)
    part = from_parquet(storage.read_bytes(storage.join(job.parts_url, "000000.parquet")))
    assert from_parquet(to_parquet(part)) == part
    assert len(part.scores) == 3 * 6 * 8


def test_a_fill_that_is_not_finite_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(image, mask):
        return image / torch.zeros(()) if image.sum() > 4000 else image

    monkeypatch.setitem(baselines.BASELINES, "mean-colour", broken)
    with pytest.raises(EvaluationError, match="not finite"):
        run_job(request(tmp_path))
    assert list((tmp_path / "root").rglob("*.*")) == []


def test_progressive_and_one_shot_are_scored_on_the_same_pairs_and_their_difference_is_paired(tmp_path):
    _, result = run_job(request(tmp_path, progressive=True, limit=4, subject="baseline:telea"))
    assert list(result.tables) == ["one-shot", "progressive"]
    gain = result.differences["progressive - one-shot"]["inp-v1"]["50-60"]["psnr"]
    means = [result.tables[way]["inp-v1"]["50-60"]["psnr"].mean for way in ("progressive", "one-shot")]
    assert gain.mean == pytest.approx(means[0] - means[1])
    assert gain.n == 4
    assert "psnr@raw" in result.tables["one-shot"]["inp-v1"]["all"]
    assert "psnr@raw" not in result.tables["progressive"]["inp-v1"]["all"]  # it is a composite already


def test_masks_from_files_need_a_polarity_and_are_loaded_as_each_protocol_says(tmp_path):
    """A hole of 21 of 64 columns: at 32 pixels its edge pixel is hole for EdgeConnect and known for ISNet."""
    masks = tmp_path / "masks"
    masks.mkdir()
    for b, columns in enumerate((10, 16, 21, 29)):
        pixels = np.zeros((64, 64), np.uint8)
        pixels[:, :columns] = 255
        Image.fromarray(pixels).save(masks / f"m{b}.png")
    wanted = {"url": str(masks), "hole": "white"}
    protocols = ("isnet-2022-test", "edgeconnect-2019")
    job = prepare(request(tmp_path, masks=wanted, protocols=protocols, limit=2))
    ratios = {name: dict(zip(s.holes.names, s.holes.ratios, strict=True)) for name, s in job.plan.shares.items()}
    assert ratios["edgeconnect-2019"]["m2.png"] == 11 / 32
    assert ratios["isnet-2022-test"]["m2.png"] == 10 / 32


def test_a_checkpoint_of_a_centre_method_is_scored_by_centre_protocols_alone(tmp_path):
    from inpaint.config import load_run

    run = load_run("context-encoder-paris", root=str(tmp_path))
    fitting, others = jobs._fitting(["all"], run)
    assert [protocol.name for protocol in fitting] == ["ce-128"]
    assert len(others) == 11
    with pytest.raises(EvaluationError, match="use --protocol ce-128"):
        jobs._fitting(["inp-v1"], run)


def test_settings_that_would_have_no_effect_are_refused(tmp_path):
    with pytest.raises(ValueError, match="best has no effect on a baseline"):
        request(tmp_path, best="psnr")
    with pytest.raises(ValueError, match="sha256 of alex has no effect"):
        request(tmp_path, sha256={"alex": "00"})
    with pytest.raises(EvaluationError, match="--lpips vgg has no effect under isnet-2022-test"):
        prepare(request(tmp_path, protocols=("isnet-2022-test",), limit=2, lpips={"vgg": "random"}))


def test_lpips_of_random_weights_must_be_asked_for_and_marks_the_result(tmp_path):
    _, plain = run_job(request(tmp_path, limit=2, size=64))
    assert "lpips_alex" not in plain.tables["one-shot"]["inp-v1"]["all"]
    assert "--lpips alex=torchvision downloads them" in plain.absent["inp-v1"]["lpips_alex"]
    _, marked = run_job(request(tmp_path, limit=2, size=64, lpips={"squeeze": "random"}))
    assert marked.tables["one-shot"]["inp-v1"]["all"]["lpips_squeeze"].mean > 0
    assert "lpips_squeeze: random weights, as asked; not a score" in marked.marks["inp-v1"]
    assert marked.stamp.protocols["inp-v1"]["metrics"] == {"lpips_squeeze": "random"}


def test_lpips_equals_the_package_on_the_weights_of_a_file_and_the_digest_is_checked(tmp_path):
    import lpips

    from inpaint.evaluation.metrics import Comparison
    from inpaint.evaluation.perceptual import load_perceptual

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package still asks torchvision for `pretrained=`
        theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    state = {"features." + name.split(".", 1)[1]: value for name, value in theirs.net.state_dict().items()}
    path = tmp_path / "squeeze.pth"
    torch.save(state, path)
    ours = load_perceptual({"squeeze": str(path)}, device="cpu").present["lpips_squeeze"]
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(a, b, normalize=True).flatten().tolist()  # normalize: from [0, 1] to [-1, 1]
    assert ours(Comparison(a, b, torch.ones(2, 1, 64, 64))).tolist() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(WeightsError, match="expected 00ff"):
        load_perceptual({"squeeze": str(path)}, device="cpu", sha256={"squeeze": "00ff"})
    with pytest.raises(EvaluationError, match="known: alex, vgg, squeeze"):
        load_perceptual({"resnet": str(path)}, device="cpu")


def test_face_scores_come_from_networks_the_user_brings(tmp_path):
    from inpaint.evaluation.faces import load_faces
    from inpaint.evaluation.metrics import Comparison

    class Points(torch.nn.Module):
        def forward(self, x):
            """One point at (8, 4) moved right by 3.2 pixels for every unit of mean brightness, one at (1, 1)."""
            shift = torch.stack([3.2 * x.mean(dim=(1, 2, 3)), torch.zeros(x.shape[0])], dim=1)
            return torch.stack([torch.tensor([8.0, 4.0]) + shift, torch.ones(x.shape[0], 2)], dim=1)

    class Means(torch.nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Points()).save(str(tmp_path / "points.pt"))
        torch.jit.script(Means()).save(str(tmp_path / "means.pt"))
    sources = {"landmarks": str(tmp_path / "points.pt"), "identity": str(tmp_path / "means.pt")}
    present, absent = load_faces(sources, device="cpu")
    assert absent == {}
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 3:6, 7:10] = 1
    truth = torch.zeros(1, 3, 32, 32)
    truth[:, 0] = 1e-6
    filled = torch.zeros(1, 3, 32, 32)
    filled[:, 1] = 1.0
    seen = Comparison(filled, truth, mask)
    assert present["face_landmarks"](seen).item() == pytest.approx(100 / 32 * 3.2 / 3, rel=1e-4)
    assert present["face_identity"](seen).item() == pytest.approx(0, abs=1e-6)
    _, absent = load_faces({}, device="cpu")
    assert "no face network comes with this package; --faces identity=PATH" in absent["face_identity"]
    (tmp_path / "none.pt").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="not TorchScript"):
        load_faces({"identity": str(tmp_path / "none.pt")}, device="cpu")


def test_images_of_an_object_store_are_scored_beside_a_local_root(tmp_path, monkeypatch):
    store = shared_server().forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    for path in Path(folder(tmp_path / "photos")).iterdir():
        store.objects[f"photos/{path.name}"] = path.read_bytes()

    here, there = prepare(request(tmp_path)), prepare(request(tmp_path, data="s3://lab/photos"))
    assert list(there.plan.pictures.ids) == list(here.plan.pictures.ids)


def test_a_sample_whose_bytes_are_not_those_of_the_index_is_refused_by_shard_and_key(tmp_path):
    """The byte that changes leaves a picture that still decodes; only the sum tells."""
    write(folder(tmp_path / "photos", count=6), tmp_path / "set", keep_original=True)
    index = load_index(str(tmp_path / "set"))
    pictures = open_pictures(index.url)
    sample = 4
    key, shard = index.key(sample), Path(index.shard_url(int(index.shard[sample])))
    pictures.read(key)
    data = bytearray(shard.read_bytes())
    last = int(index.offset[sample]) + int(index.length[sample]) - 1
    data[last] ^= 1  # of the checksum of PNG's end, which decoders pass over
    shard.write_bytes(data)
    with pytest.raises(EvaluationError, match=rf"{shard.name}: sample {key} is not as the index describes it"):
        pictures.read(key)
    pictures.read(index.key(0))


def test_a_wrong_baseline_or_data_is_refused_in_one_line(tmp_path):
    with pytest.raises(EvaluationError, match="baseline:tela is not a baseline; did you mean telea"):
        prepare(request(tmp_path, subject="baseline:tela"))
    with pytest.raises(EvaluationError, match="no such folder or archive"):
        prepare(request(tmp_path, data=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    with pytest.raises(EvaluationError, match="no images here"):
        prepare(request(tmp_path, data=str(tmp_path / "empty")))
