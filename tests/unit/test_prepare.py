"""Splits, statistics and packing."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cifarflow import files
from cifarflow.data.holdout import stratified_holdout
from cifarflow.data.packed import Split, read_dataset, read_split
from cifarflow.data.prepare import measure, prepare
from cifarflow.data.raw import RawDataset
from cifarflow.errors import DataIntegrityError, MissingInputError
from cifarflow.workspace import Workspace


def raw_dataset(*, counts: tuple[int, ...] = (50, 30, 20), size: int = 8) -> RawDataset:
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat(np.arange(len(counts)), counts))
    images = random.integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
    return RawDataset(
        train_images=images,
        train_labels=labels,
        test_images=images[:6],
        test_labels=labels[:6],
        classes=tuple("abcdefgh"[: len(counts)]),
    )


def run(raw: RawDataset, root: Path, *, seed: int = 1, fraction: float = 0.1) -> Workspace:
    workspace = Workspace.at(root, {})
    prepare(raw, source="shapes", validation_fraction=fraction, seed=seed, workspace=workspace)
    return workspace


def test_every_training_picture_is_in_train_or_validation_once(tmp_path: Path) -> None:
    raw = raw_dataset()
    workspace = run(raw, tmp_path)
    train, validation = read_split(workspace.split("train")), read_split(workspace.split("validation"))
    assert np.bincount(validation.labels).tolist() == [5, 3, 2]
    together = np.concatenate([train.images, validation.images])
    assert sorted(image.tobytes() for image in together) == sorted(
        image.tobytes() for image in raw.train_images
    )
    assert np.array_equal(read_split(workspace.split("test")).images, raw.test_images)


def test_statistics_are_those_of_all_training_pixels_and_no_others(tmp_path: Path) -> None:
    workspace = run(raw_dataset(), tmp_path)
    info, pixels = read_dataset(workspace.dataset), read_split(workspace.split("train")).images / 255
    np.testing.assert_allclose(info.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(info.std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)


def test_statistics_do_not_depend_on_the_order() -> None:
    images = raw_dataset(counts=(1000, 700)).train_images
    assert measure(images) == measure(images[::-1])


def test_description_tells_what_is_there(tmp_path: Path) -> None:
    workspace = run(raw_dataset(), tmp_path)
    info = read_dataset(workspace.dataset)
    assert info.source == "shapes"
    assert info.classes == ("a", "b", "c")
    assert info.image_size == 8
    assert info.counts["train"] == {"a": 45, "b": 27, "c": 18}
    assert info.digests == {name: read_split(workspace.split(name)).digest() for name in info.digests}
    assert set(info.digests) == {"train", "validation", "test"}


def test_same_input_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (run(raw_dataset(), tmp_path / name, seed=len(name)) for name in ("a", "b", "cc"))
    for name in ("dataset.json", "train.safetensors", "validation.safetensors", "test.safetensors"):
        content = [(place.prepared / name).read_bytes() for place in (first, again, other)]
        assert content[0] == content[1]
        assert (content[0] == content[2]) == (name == "test.safetensors")


def test_own_validation_split_is_kept(tmp_path: Path) -> None:
    raw = raw_dataset()
    own = replace(raw, validation_images=raw.train_images[:4], validation_labels=raw.train_labels[:4])
    workspace = run(own, tmp_path)
    assert len(read_split(workspace.split("train")).labels) == 100
    assert np.array_equal(read_split(workspace.split("validation")).images, raw.train_images[:4])
    assert read_dataset(workspace.dataset).validation_indices_digest is None


@pytest.mark.parametrize(
    ("count", "fraction", "held"), [(5000, 0.02, 100), (2, 0.01, 1), (2, 0.49, 1), (5, 0.3, 2)]
)
def test_holdout_is_rounded_by_class(count: int, fraction: float, held: int) -> None:
    labels = np.arange(3 * count) % 3
    kept, out = stratified_holdout(labels, fraction=fraction, seed=0, stream=0)
    assert np.bincount(labels[out]).tolist() == [held] * 3
    assert np.array_equal(np.sort(np.concatenate([kept, out])), np.arange(3 * count))


def test_holdout_is_the_same_on_every_machine() -> None:
    _, out = stratified_holdout(np.arange(40) % 2, fraction=0.1, seed=1, stream=1)
    assert out.tolist() == [22, 23, 24, 39]


def spoilt(kind: str) -> RawDataset:
    raw = raw_dataset()
    flat = np.full_like(raw.train_images, 7)
    grey = raw.train_images.copy()
    grey[..., 1] = 7
    return {
        "one class": raw_dataset(counts=(40,)),
        "a class without pictures": raw_dataset(counts=(40, 0, 10)),
        "one picture": raw_dataset(counts=(1, 1)),
        "all alike": replace(raw, train_images=flat),
        "one picture many times": replace(raw, train_images=np.broadcast_to(raw.train_images[0], grey.shape)),
        "a channel without a picture": replace(raw, train_images=grey),
        "no test": replace(raw, test_images=raw.test_images[:0], test_labels=raw.test_labels[:0]),
        "label beyond": replace(raw, test_labels=raw.test_labels + 5),
        "not square": replace(raw, test_images=raw.test_images[:, 1:]),
        "floats": replace(raw, test_images=raw.test_images / 255),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("one class", "the only class is a"),
        ("a class without pictures", r"too few training pictures .*: b \(0\)"),
        ("one picture", r"at least 2 a class\): a \(1\), b \(1\)"),
        ("all alike", "all 90 training pictures are alike, pixel by pixel"),
        ("one picture many times", "all 90 training pictures are alike, pixel by pixel"),
        ("a channel without a picture", "every green value is the same"),
        ("no test", "test split holds no pictures"),
        ("label beyond", r"labels 5\.\."),
        ("not square", r"test split: images are uint8 \[6, 7, 8, 3\]"),
        ("floats", "test split: images are float64"),
    ],
)
def test_pictures_that_teach_nothing_are_refused(tmp_path: Path, kind: str, text: str) -> None:
    with pytest.raises(DataIntegrityError, match=text):
        run(spoilt(kind), tmp_path)
    assert not Workspace.at(tmp_path, {}).dataset.exists()


def test_failed_prepare_leaves_no_description_of_older_splits(tmp_path: Path) -> None:
    workspace = run(raw_dataset(), tmp_path)
    with pytest.raises(DataIntegrityError):
        run(spoilt("all alike"), tmp_path)
    assert not workspace.dataset.exists()


def test_missing_outputs_name_the_stage(tmp_path: Path) -> None:
    for read in (read_split, read_dataset):
        with pytest.raises(MissingInputError, match="dvc repro prepare"):
            read(tmp_path / "x")


def test_wrong_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    images = np.zeros((2, 4, 4, 3), np.uint8)
    for tensors in ({"images": images}, {"images": images, "labels": np.zeros(2, np.int32)}):
        files.write_tensors(path, tensors)
        with pytest.raises(DataIntegrityError, match=r"train.safetensors.*dvc repro prepare"):
            read_split(path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"classes": 1}', '"text"', "", "\xff", "[" * 100_000])
def test_wrong_description_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(DataIntegrityError, match=r"dataset.json is not a data set's description"):
        read_dataset(path)


@pytest.mark.parametrize(
    "change",
    [
        {"counts": {"train": 3}},
        {"counts": {"train": {"a": "many"}}},
        {"digests": {"train": 1}},
        {"digests": {"train": "../../x"}},
        {"digests": []},
        {"classes": ["a"]},
        {"classes": [1, 2]},
        {"image_size": 10**9},
        {"image_size": "32"},
        {"mean": [0.5, 0.5]},
        {"std": [0.5, 0.5, math.nan]},
        {"source": None},
        {"validation_indices_digest": "\x1b[31m"},
        {"more": 1},
    ],
)
def test_a_wrong_fact_of_the_description_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    path = run(raw_dataset(), tmp_path).dataset
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(
        DataIntegrityError, match=rf"description: {next(iter(change))}.*dvc repro prepare"
    ) as fault:
        read_dataset(path)
    assert str(fault.value).isprintable()


def test_digest_tells_shapes_apart() -> None:
    pixels, labels = np.zeros(96, np.uint8), np.zeros(2, np.int64)
    digests = {
        Split(images=pixels.reshape(shape), labels=labels).digest() for shape in ((2, 4, 4, 3), (2, 2, 8, 3))
    }
    assert len(digests) == 2
