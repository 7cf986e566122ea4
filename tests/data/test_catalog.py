"""Splits that are rules over file names."""

from inpaint.data.catalog import find_split

CLASSES = [f"n{number:08d}" for number in range(100)]
TRAIN = [f"CLS-LOC/train/{name}/{name}_{number}.JPEG" for name in CLASSES for number in range(200)]
VALIDATION = [f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]


def test_the_imagenet_subset_takes_10000_validation_images_to_train_and_10000_others_to_test():
    train, test = find_split("imagenet-100k", "train"), find_split("imagenet-100k", "test")
    to_train, to_test = {n for n in VALIDATION if train(n)}, {n for n in VALIDATION if test(n)}
    assert (len(to_train), len(to_test)) == (10_000, 10_000)
    assert not to_train & to_test


def test_the_imagenet_subset_takes_one_training_image_in_16():
    train, test = find_split("imagenet-100k", "train"), find_split("imagenet-100k", "test")
    # 20,000 · 80,000 / 1,281,167 = 1,249 with a standard deviation of 34
    assert 1_249 - 150 < sum(map(train, TRAIN)) < 1_249 + 150
    assert not any(map(test, TRAIN))


def test_unlabelled_test_images_belong_nowhere():
    name = "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000007.JPEG"
    assert not any(find_split("imagenet-100k", split)(name) for split in ("train", "test"))
