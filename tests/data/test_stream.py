"""The stream's promises: the same global batches in every world, exact resume, explicit remainders, counted damage."""

import logging
import os
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inpaint.config.holes import CentreHole
from inpaint.config.run import DataConfig
from inpaint.data.index import index_set
from inpaint.data.stream import Stream
from inpaint.errors import ConfigError, DataError
from tests.data.gallery import save
from tests.data.sets import make_set, open_set, picture, take, write_shards, write_tar


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """23 samples in five shards of uneven size."""
    return make_set(tmp_path_factory.mktemp("toy"), [7, 1, 6, 4, 5])


def joined(index, count, *, world_size, **settings):
    """Global batches put together from what each rank gets."""
    ranks = [take(open_set(index, rank=rank, world_size=world_size, **settings), count) for rank in range(world_size)]
    return [
        (
            sum((batch.keys for batch in batches), ()),
            torch.cat([batch.image for batch in batches]),
            torch.cat([batch.mask for batch in batches]),
        )
        for batches in zip(*ranks, strict=True)
    ]


def assert_same(some, others):
    for (keys, image, mask), (other_keys, other_image, other_mask) in zip(some, others, strict=True):
        assert keys == other_keys
        assert torch.equal(image, other_image)
        assert torch.equal(mask, other_mask)


@given(
    seed=st.integers(0, 2**31),
    shuffle=st.sampled_from(["global", "window"]),
    window_shards=st.integers(1, 6),
    last_batch=st.sampled_from(["drop", "wrap"]),
    world_size=st.sampled_from([2, 3, 4, 8]),
    decode_threads=st.sampled_from([0, 1, 2, 5]),
    start=st.integers(0, 40),
    crop=st.sampled_from(["centre", "random"]),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_global_batches_are_the_same_in_every_world(toy, world_size, decode_threads, start, **world):
    """One rank with one thread from the beginning, against many ranks and threads that resume in the middle."""
    global_batch = 24 if world["last_batch"] == "wrap" else {2: 4, 3: 6, 4: 4, 8: 8}[world_size]
    whole = joined(toy, start + 2, world_size=1, global_batch=global_batch, decode_threads=1, **world)[start:]
    resumed = joined(
        toy, 2, world_size=world_size, global_batch=global_batch, start=start, decode_threads=decode_threads, **world
    )
    assert_same(whole, resumed)


@pytest.mark.parametrize("shuffle", ["global", "window"])
def test_every_sample_comes_once_per_epoch_and_the_remainder_is_dropped(toy, shuffle):
    stream = open_set(toy, shuffle=shuffle, window_shards=2, global_batch=4)
    assert stream.batches_per_epoch == 5
    keys = [key for batch in take(stream, 10) for key in batch.keys]

    assert len(set(keys[:20])) == len(set(keys[20:])) == 20
    assert keys[:20] != keys[20:]


def test_wrapping_fills_the_last_batch_from_the_epochs_beginning(toy):
    keys = [key for batch in take(open_set(toy, last_batch="wrap", global_batch=4), 6) for key in batch.keys]
    assert sorted(set(keys)) == [f"k{i:04d}" for i in range(23)]
    assert keys[23:] == keys[:1]


def test_one_shard_feeds_eight_ranks(tmp_path):
    index = make_set(tmp_path, [8])
    ranks = [take(open_set(index, global_batch=8, rank=rank, world_size=8), 1)[0] for rank in range(8)]
    keys = [key for batch in ranks for key in batch.keys]
    assert sorted(keys) == [f"k{i:04d}" for i in range(8)]


def test_ranks_that_cannot_share_a_batch_evenly_are_refused(toy):
    with pytest.raises(ConfigError, match="does not divide among 3 ranks"):
        open_set(toy, global_batch=4, world_size=3)


def test_images_are_the_files_pixels_and_masks_are_zero_or_one(toy):
    batch = take(open_set(toy, flip=False, decode="exact"), 1)[0]
    for key, image in zip(batch.keys, batch.image, strict=True):
        assert torch.equal(image, pil_pixels(picture(int(key[1:]))))
    assert batch.image.dtype == batch.mask.dtype == torch.float32
    assert set(batch.mask.unique().tolist()) == {0.0, 1.0}
    assert batch.mask.shape == (4, 1, 16, 16)


def pil_pixels(data):
    import io

    from PIL import Image

    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1) / 255


def test_looks_recur_after_as_many_epochs_and_without_them_never(toy):
    def looks(**settings):
        """Epoch → key → image and mask."""
        epochs = [{}, {}, {}]
        stream = open_set(toy, global_batch=1, flip=True, **settings)
        samples = len(toy)
        for number, batch in enumerate(take(stream, 3 * samples)):
            epochs[number // samples][batch.keys[0]] = torch.cat((batch.image[0], batch.mask[0]))
        return epochs

    def equal(one, other):
        return [torch.equal(one[key], other[key]) for key in sorted(one)]

    first, second, third = looks(looks=2)
    assert all(equal(first, third))
    assert not any(equal(first, second))
    first, _, third = looks()
    assert not any(equal(first, third))


def test_mirroring_turns_about_half_of_the_images_and_their_masks(toy):
    plain = take(open_set(toy, flip=False), 20)
    mirrored = take(open_set(toy, flip=True), 20)
    turned = 0
    for one, other in zip(plain, mirrored, strict=True):
        for i in range(4):
            if torch.equal(one.image[i], other.image[i]):
                assert torch.equal(one.mask[i], other.mask[i])
            else:
                turned += 1
                assert torch.equal(one.image[i].flip(2), other.image[i])
                assert torch.equal(one.mask[i].flip(2), other.mask[i])
    assert 25 <= turned <= 55  # 40 of 80 expected, 3.4 standard deviations


def test_masks_differ_between_samples_and_epochs(toy):
    batches = take(open_set(toy, global_batch=23, flip=False), 2)
    masks = {batch.mask[i].numpy().tobytes() for batch in batches for i in range(23)}
    assert len(masks) > 40


def test_a_centre_hole_is_the_same_for_all(toy):
    batch = take(open_set(toy, holes=CentreHole(share=0.5)), 1)[0]
    expected = torch.zeros(16, 16)
    expected[4:12, 4:12] = 1
    assert all(torch.equal(mask[0], expected) for mask in batch.mask)


def test_random_crops_move_with_sample_and_epoch_and_centre_crops_stay(tmp_path):
    index = make_set(tmp_path, [4], width=48, height=16)
    centre = take(open_set(index, flip=False), 3)
    random = take(open_set(index, flip=False, crop="random"), 3)

    by_key = [dict(zip(batch.keys, batch.image, strict=True)) for batch in centre]
    assert all(torch.equal(by_key[0][key], by_key[1][key]) for key in by_key[0])
    crops = {dict(zip(batch.keys, batch.image, strict=True))["k0002"].numpy().tobytes() for batch in random}
    assert len(crops) == 3


def test_crops_of_a_share_move_in_square_images_too(toy):
    seen = [take(open_set(toy, flip=False, crop="random", crop_share=share), 24) for share in (1, 0.5)]
    looks = [len({batch.image[keys.index("k0002")].numpy().tobytes() for batch in batches for keys in [batch.keys]
                  if "k0002" in keys}) for batches in seen]  # fmt: skip
    assert looks[0] == 1 < looks[1]


def test_a_batch_stays_what_it_was_when_later_ones_come(toy):
    with open_set(toy) as stream:
        batch = next(stream)
        image, mask = batch.image.clone(), batch.mask.clone()
        for _ in range(8):
            next(stream)
    assert torch.equal(batch.image, image)
    assert torch.equal(batch.mask, mask)


def test_the_state_is_a_few_integers_and_the_digest(toy):
    stream = open_set(toy)
    take(stream, 3)
    state = stream.state_dict()
    assert state.pop("index") == toy.digest
    assert state.pop("batches") == 3
    assert all(isinstance(value, int) for value in state.values())
    assert len(state) < 6


@pytest.mark.parametrize("change", [{"seed": 1}, {"global_batch": 2}, {"shuffle": "window"}, {"last_batch": "wrap"}])
def test_a_state_of_another_sequence_is_refused(toy, change):
    stream, other = open_set(toy), open_set(toy, **change)
    with pytest.raises(DataError, match="cannot go on: "):
        other.check_state(stream.state_dict())
    open_set(toy, rank=1, world_size=2, decode_threads=2, flip=False).check_state(stream.state_dict())
    stream.close()
    other.close()


def test_a_state_of_another_set_is_refused(toy, tmp_path):
    stream, other = open_set(toy), open_set(make_set(tmp_path, [7, 1, 6, 4, 5], offset=1))
    with pytest.raises(DataError, match="index was .*the shards are others"):
        other.check_state(stream.state_dict())
    stream.close()
    other.close()


def test_the_first_batch_after_a_resume_costs_the_same_at_any_position(tmp_path):
    index = make_set(tmp_path, [60] * 10)
    seconds = {}
    for start in (0, 140, 3_000_000):
        began = time.thread_time() + time.process_time()
        take(open_set(index, start=start, decode_threads=0, holes=None), 1)
        seconds[start] = time.thread_time() + time.process_time() - began
    assert max(seconds.values()) < 0.5


def bad_set(folder, bad, *, count=40):
    """A set whose `bad` samples hold bytes that are no image."""
    samples = [{"__key__": f"k{i:04d}", "jpg": bad.get(i) or picture(i)} for i in range(count)]
    write_tar(folder / "0.tar", samples[: count // 2])
    write_tar(folder / "1.tar", samples[count // 2 :])
    return index_set(str(folder))


BAD = {"cut": picture(3)[:200], "garbage": b"\xff\xd8\xff" + b"no image" * 20, "text": b"hello"}


@pytest.mark.parametrize("kind", BAD)
def test_a_corrupt_image_is_skipped_counted_and_logged_with_its_key(tmp_path, caplog, kind):
    index = bad_set(tmp_path, {3: BAD[kind]})
    with caplog.at_level(logging.WARNING), open_set(index, max_bad_share=0.05) as stream:
        keys = [key for _ in range(20) for key in next(stream).keys]
        assert stream.stats()["skipped_samples"] == 2  # once in each of two epochs
    assert "k0003" not in keys
    assert len(keys) == 80
    assert len([record for record in caplog.records if "k0003" in record.message and "0.tar" in record.message]) == 1


def test_what_stands_in_for_a_corrupt_image_is_the_same_in_every_world(tmp_path):
    index = bad_set(tmp_path, {3: b"bad", 17: b"worse"})
    one = joined(index, 10, world_size=1, max_bad_share=0.2)
    two = joined(index, 10, world_size=2, max_bad_share=0.2, decode_threads=3)
    assert_same(one, two)


def test_too_many_corrupt_images_fail_the_run(tmp_path):
    index = bad_set(tmp_path, {3: b"bad", 5: b"bad", 22: b"bad"})
    with pytest.raises(DataError, match=r"3 of 40 images cannot be decoded, more than data\.max_bad_share 0\.05"):
        take(open_set(index, max_bad_share=0.05), 10)
    with pytest.raises(DataError, match=r"1 of 40 .*max_bad_share 0\.001"):
        take(open_set(index), 10)


@pytest.mark.parametrize("damage", ["cut", "altered", "removed"])
def test_a_local_shard_that_was_damaged_after_indexing_is_an_error_that_names_it(tmp_path, damage):
    index = make_set(tmp_path, [4, 4])
    path = tmp_path / "000001.tar"
    if damage == "cut":
        os.truncate(path, int(index.offset[6]) + 5)
    elif damage == "altered":
        data = bytearray(path.read_bytes())
        data[index.offset[6] + 20] ^= 255
        path.write_bytes(data)
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"000001\.tar: .*(truncated or altered: sample k000|the shard is missing)"):
        take(open_set(index), 2)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_are_decoded_too(tmp_path, kind):
    samples = [{"__key__": f"k{i}", kind.lower(): picture(i, kind=kind)} for i in range(4)]
    write_tar(tmp_path / "0.tar", samples)
    batch = take(open_set(index_set(str(tmp_path)), flip=False), 1)[0]
    for key, image in zip(batch.keys, batch.image, strict=True):
        assert torch.equal(image, pil_pixels(picture(int(key[1:]), kind=kind)))


def test_waiting_for_decoding_is_measured_and_its_cause_named(tmp_path):
    write_shards(tmp_path, [24], width=512, height=512)
    with open_set(index_set(str(tmp_path)), image_size=512, decode_threads=1, holes=None) as stream:
        for _ in range(12):
            stream.next_host()
        assert stream.stats()["wait_share"] > 0.5
        assert "likely cause: decoding; raise data.decode_threads" in stream.hint()


def test_a_run_that_waits_for_its_data_says_so_once(tmp_path, caplog):
    write_shards(tmp_path, [24], width=256, height=256)
    index = index_set(str(tmp_path))
    with caplog.at_level(logging.WARNING), open_set(index, image_size=256, decode_threads=0, holes=None) as stream:
        for _ in range(70):
            stream.next_host()
    said = [record.message for record in caplog.records if "waiting for data" in record.message]
    assert len(said) == 1
    assert "likely cause: decoding" in said[0]


def test_a_slow_consumer_does_not_wait(toy):
    with open_set(toy, holes=None) as stream:
        for _ in range(12):
            next(stream)
            time.sleep(0.02)
        assert stream.stats()["wait_share"] < 0.1
        assert stream.hint() == ""


def test_a_closed_stream_says_so_and_leaves_no_threads(toy):
    import threading

    before = threading.active_count()
    stream = open_set(toy, decode_threads=3)
    next(stream)
    stream.close()
    assert threading.active_count() == before
    with pytest.raises(DataError, match="closed"):
        next(stream)


def test_an_odd_size_cannot_keep_decoded_planes(toy):
    data = DataConfig(dataset="toy", image_size=15, decoded_cache_gib=0.1)
    with pytest.raises(ConfigError, match="even"):
        Stream(toy, data, None, seed=0, global_batch=2)


def test_image_files_of_every_size_pass_through_one_threads_memory(tmp_path):
    """PNGs of noise: 1 kB, 110 kB and 270 kB, in turn, where 64 KiB are expected."""
    noise = np.random.default_rng(0)
    samples = []
    for i, side in enumerate([16, 300, 190, 16, 300, 190]):
        pixels = noise.integers(0, 256, (side, side, 3), np.uint8)
        samples.append({"__key__": f"n{i}", "png": save(pixels, "PNG")})
    write_tar(tmp_path / "set" / "000000.tar", samples)
    index = index_set(str(tmp_path / "set"))
    assert index.length.min() < 2000
    assert index.length.max() > 1 << 17
    for threads in (0, 1):
        (batch,) = take(open_set(index, global_batch=6, decode_threads=threads), 1)
        assert sorted(batch.keys) == ["n0", "n1", "n2", "n3", "n4", "n5"]


def test_batches_planned_together_are_those_planned_one_by_one(tmp_path):
    """A block of planned batches ends with its epoch; streams that begin inside it give the same batches."""
    index = make_set(tmp_path / "set", [9, 8])
    settings = {"crop": "random", "last_batch": "wrap", "global_batch": 4}
    whole = take(open_set(index, **settings), 14)  # 5 batches an epoch
    for start in (1, 4, 5, 9, 12):
        assert_same(
            [(b.keys, b.image, b.mask) for b in take(open_set(index, start=start, **settings), 2)],
            [(b.keys, b.image, b.mask) for b in whole[start : start + 2]],
        )
