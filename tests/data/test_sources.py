import pytest

from inpaint.data.catalog import DATASETS, find_split
from inpaint.data.sources import select
from inpaint.errors import ConfigError, DataError


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return str(folder)


def keys(source, **options):
    with select(source, **options) as selection:
        return [candidate.key for candidate in selection.candidates]


def test_keys_are_paths_below_what_all_share_sorted_by_name(tmp_path):
    source = make(tmp_path, "set/b/2.jpg", "set/a/10.jpg", "set/a/9.PNG")
    assert keys(source) == ["a_10", "a_9", "b_2"]


def test_names_that_would_share_a_key_are_told_apart_whoever_else_is_there(tmp_path):
    source = make(tmp_path, "a/1.jpg", "a/1.png", "a/2.jpg", "b.c/3.jpg", "b_c/3.jpg")
    found = keys(source)
    assert len(set(found)) == 5
    assert "a_2" in found
    assert all(key.startswith(("a_", "b_c_3-")) for key in found)
    with_more = keys(make(tmp_path, "a/4.jpg"))
    assert set(found) < set(with_more)


def test_long_and_strange_names_make_short_plain_keys(tmp_path):
    source = make(tmp_path, "x" * 120 + ".jpg", "Straße (1) ...jpg", "日本.jpg", "...jpg.jpg")
    found = keys(source)
    assert len(set(found)) == 3
    assert all(len(key.encode()) <= 80 and "." not in key and "/" not in key for key in found)


def test_what_is_not_an_image_by_name_is_counted_not_forgotten(tmp_path):
    source = make(tmp_path, "1.jpg", "notes.txt", "more.txt", ".DS_Store", "__MACOSX/._1.jpg", "._1.jpg", "noending")
    with select(source) as selection:
        assert [c.entry.name for c in selection.candidates] == ["1.jpg", "noending"]
        assert selection.left_out == {"not an image by its name (.txt)": 2, "hidden or left by a file manager": 3}


def test_a_list_chooses_by_path_name_or_stem_in_its_own_order(tmp_path):
    source = make(tmp_path / "s", "a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", "with space.jpg")
    listed = tmp_path / "list.txt"
    listed.write_text("# chosen\nb/4.jpg 17\n./a/1.jpg\n3,train\n\nwith space.jpg\n")
    with select(source, list_file=str(listed)) as selection:
        names = [c.entry.name for c in selection.candidates]
    assert names == ["b/4.jpg", "a/1.jpg", "b/3.jpg", "with space.jpg"]
    assert selection.left_out == {"not in the list": 1}


def test_a_list_with_unknown_or_ambiguous_names_stops(tmp_path):
    source = make(tmp_path / "s", "a/1.jpg", "b/1.jpg")
    listed = tmp_path / "list.txt"
    listed.write_text("a/1.jpg\n7.jpg\n8.jpg\n")
    with pytest.raises(DataError, match=r"2 of its 3 lines name no image of the source \(for instance '7\.jpg'"):
        keys(source, list_file=str(listed))
    listed.write_text("1.jpg\n")
    with pytest.raises(DataError, match=r"1\.jpg may be a/1\.jpg and b/1\.jpg; give it with its folder"):
        keys(source, list_file=str(listed))
    listed.write_text("\n")
    with pytest.raises(DataError, match="expected one file name per line"):
        keys(source, list_file=str(listed))


@pytest.mark.parametrize("between", [" ", ",", ", "])
def test_a_list_of_all_parts_is_refused_and_that_of_one_is_taken(tmp_path, between):
    source = make(tmp_path / "s", "1.jpg", "2.jpg", "3.jpg")
    listed = tmp_path / "list_eval_partition.txt"
    listed.write_text("".join(f"{image}.jpg{between}{part}\n" for image, part in ((1, 0), (2, 1), (3, 2))))
    with pytest.raises(DataError, match=r"names images of the parts 0, 1, 2 \(0 train, 1 validation, 2 test\)"):
        keys(source, list_file=str(listed))
    listed.write_text(f"2.jpg{between}2\n3.jpg{between}2\n")
    assert len(keys(source, list_file=str(listed))) == 2
    labels = tmp_path / "places365_val.txt"
    labels.write_text(f"1.jpg{between}0\n2.jpg{between}1\n")
    assert len(keys(source, list_file=str(labels))) == 2


def test_shuffle_is_by_seed_and_a_limit_takes_the_first_of_that_order(tmp_path):
    source = make(tmp_path, *(f"{i:02d}.jpg" for i in range(20)))
    assert keys(source, shuffle=1) == keys(source, shuffle=1) != keys(source, shuffle=2)
    assert sorted(keys(source, shuffle=1)) == keys(source)
    assert keys(source, shuffle=1, limit=5) == keys(source, shuffle=1)[:5]


def test_a_source_of_other_things_says_what_it_holds(tmp_path):
    with pytest.raises(DataError, match="2 files, none of them an image"):
        keys(make(tmp_path / "text", "a.txt", "b.txt"))
    with pytest.raises(DataError, match="1 of them archives and no images; give one of the archives"):
        keys(make(tmp_path / "packed", "a.zip", "b.txt"))


PLACES = ("places365_standard/train/airfield/00000001.jpg", "places365_standard/val/zoo/00000002.jpg")


def test_places2_easy_layout_splits_by_folder(tmp_path):
    source = make(tmp_path / "places", *PLACES, "places365_standard/train.txt")
    assert keys(source, dataset="places2", split="train") == ["train_airfield_00000001"]
    assert keys(source, dataset="places2", split="test") == ["val_zoo_00000002"]
    inside = str(tmp_path / "places" / "places365_standard" / "val")  # a split's own folder says it by its name
    assert keys(inside, dataset="places2", split="test") == ["00000002"]
    with pytest.raises(DataError, match="no image belongs to places2 train by its name"):
        keys(inside, dataset="places2", split="train")


def test_places2_other_layouts_and_the_unlabelled_test_images():
    train, test = find_split("places2", "train"), find_split("places2", "test")
    assert train("data_256/a/abbey/00000001.jpg")
    assert train("data_large_standard/a/abbey/00000001.jpg")
    assert test("val_256/Places365_val_00000001.jpg")
    assert not train("test_256/Places365_test_00000001.jpg")
    assert not test("test_large/Places365_test_00000001.jpg")


def count(dataset, split, names):
    rule = find_split(dataset, split)
    return sum(rule(name) for name in names)


def test_celeba_splits_have_the_official_sizes():
    names = [f"img_align_celeba/{i:06d}.jpg" for i in range(1, 202_600)]
    sizes = {split: count("celeba", split, names) for split in DATASETS["celeba"].splits}
    assert sizes == {"train": 162_770, "validation": 19_867, "test": 19_962}  # list_eval_partition.txt


def test_celeba_hq_splits_are_28000_and_2000_without_the_part_masks():
    names = [f"CelebAMask-HQ/CelebA-HQ-img/{i}.jpg" for i in range(30_000)]
    names += [f"CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/{i:05d}_hair.png" for i in range(2000)]
    assert count("celeba-hq", "train", names) == 28_000  # DiNA: the first 28,000 train
    assert count("celeba-hq", "test", names) == 2_000


@pytest.mark.parametrize(
    ("dataset", "first", "train", "test"),
    [("celeba-hq-27000", 0, 27_000, 3_000), ("celeba-182339", 1, 182_339, 20_260)],  # hybrid dilated; ISFRNet
)
def test_random_splits_have_the_papers_sizes_and_share_nothing(dataset, first, train, test):
    names = [f"{i:06d}.jpg" for i in range(first, first + train + test)]
    in_train, in_test = find_split(dataset, "train"), find_split(dataset, "test")
    chosen = [(in_train(name), in_test(name)) for name in names]
    assert sum(a for a, _ in chosen) == train
    assert sum(b for _, b in chosen) == test
    assert not any(a and b for a, b in chosen)
    assert any(b for _, b in chosen[:100])  # not simply the last ones


def test_paris_streetview_as_it_is_distributed():
    train, test = find_split("paris-streetview", "train"), find_split("paris-streetview", "test")
    assert train("paris/paris_train_original/48.842_2.344_90_-004.JPG")
    assert test("paris/paris_eval/paris_eval_gt/001_im.png")
    assert not test("paris/paris_eval/paris_eval_corrupted/001_im.png")


def test_unknown_data_sets_and_splits_come_with_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean places2"):
        find_split("places", "train")
    with pytest.raises(ConfigError, match="did you mean train"):
        find_split("places2", "trian")
