"""Own pictures: every fault is found before anything is packed, and sound ones come through as they are."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cifarflow import files
from cifarflow.config.schema import Cifar10Config, FolderConfig, ShapesConfig
from cifarflow.data.prepare import prepare
from cifarflow.data.progress import plain_lines
from cifarflow.data.raw import RawDataset
from cifarflow.data.sources import FetchContext, ReadContext, folder
from cifarflow.errors import DataIntegrityError, MissingInputError
from cifarflow.workspace import Workspace

HYMENOPTERA = Path(__file__).parents[2].parent / "shared" / "data" / "hymenoptera-sample"


def paint(path: Path, seed: int, *, size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def paint_all(images: Path, *folders: str, count: int = 4) -> None:
    for number, name in enumerate(folders):
        for index in range(count):
            paint(images / name / f"{index}.png", 100 * number + index)


def fetch(root: Path, environ: dict[str, str] | None = None) -> str:
    return folder.fetch(
        FetchContext(
            workspace=Workspace.at(root, environ or {}),
            environ={},
            progress=plain_lines,
            cifar10=Cifar10Config(urls=("http://127.0.0.1:9",)),
            shapes=ShapesConfig(train_count=100, test_count=100, image_size=16, seed=0),
        )
    )


def read(root: Path, *, size: int = 16, seed: int = 1) -> RawDataset:
    raw = Workspace.at(root, {}).raw
    return folder.read(
        ReadContext(raw=raw, seed=seed, folder=FolderConfig(image_size=size, test_fraction=0.25))
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "data" / "images"


def fault_of(root: Path) -> str:
    with pytest.raises(DataIntegrityError) as caught:
        fetch(root)
    assert not any((root / "data" / "raw").iterdir())
    return str(caught.value)


def test_class_folders_become_train_and_test(images: Path, tmp_path: Path) -> None:
    paint_all(images, "bird", "ant", count=8)
    assert "16 pictures of 2 classes" in fetch(tmp_path)
    raw = read(tmp_path)
    assert raw.classes == ("ant", "bird")
    assert np.bincount(raw.train_labels).tolist() == [6, 6]
    assert np.bincount(raw.test_labels).tolist() == [2, 2]
    assert raw.train_images.shape == (12, 16, 16, 3)
    assert raw.validation_images is None


def test_own_splits_are_kept(images: Path, tmp_path: Path) -> None:
    paint_all(images, "train/a", "train/b", "val/a", "val/b", "test/a", "test/b", count=3)
    paint(images / "test" / "b" / "one more.png", 999)
    fetch(tmp_path)
    raw = read(tmp_path)
    assert raw.validation_labels is not None
    assert (len(raw.train_labels), len(raw.validation_labels), len(raw.test_labels)) == (6, 6, 7)


def test_class_may_be_called_train(images: Path, tmp_path: Path) -> None:
    paint_all(images, "car", "train")
    fetch(tmp_path)
    assert read(tmp_path).classes == ("car", "train")


def test_equal_pictures_give_equal_bytes_whenever_they_were_made(images: Path, tmp_path: Path) -> None:
    paint_all(images, "a", "b")
    made = []
    for mode in (0o644, 0o600):
        for picture in images.rglob("*.png"):
            picture.chmod(mode)
            picture.touch()
        fetch(tmp_path)
        made.append(
            [(tmp_path / "data/raw" / name).read_bytes() for name in ("pictures.tar", "pictures.json")]
        )
    assert made[0] == made[1]


def test_files_are_packed_untouched(images: Path, tmp_path: Path) -> None:
    paint_all(images, "a", "b", count=3)
    fetch(tmp_path)
    with tarfile.open(tmp_path / "data/raw/pictures.tar") as tar:
        packed = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert packed == {
        path.relative_to(images).as_posix(): path.read_bytes() for path in images.rglob("*.png")
    }


def test_squares_are_what_pillow_makes_of_the_whole_picture(images: Path, tmp_path: Path) -> None:
    paint_all(images, "train/a", "train/b", "test/a", count=3)
    fetch(tmp_path)
    whole = Image.open(images / "test/a/1.png").resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(read(tmp_path).test_images[1], np.asarray(whole))


def test_test_split_depends_on_the_seed_alone(images: Path, tmp_path: Path) -> None:
    paint_all(images, "a", "b", count=20)
    fetch(tmp_path)
    first, again, other = (read(tmp_path, seed=seed).test_images for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_hidden_and_system_files_are_skipped(images: Path, tmp_path: Path) -> None:
    paint_all(images, "a", "b")
    for name in (".gitkeep", "a/.DS_Store", "a/Thumbs.db", ".ipynb_checkpoints/x.png", "__MACOSX/a/x.png"):
        (images / name).parent.mkdir(exist_ok=True, parents=True)
        (images / name).write_bytes(b"")
    assert "8 pictures of 2 classes" in fetch(tmp_path)


def test_linked_class_folder_is_followed(images: Path, tmp_path: Path) -> None:
    paint_all(images, "a")
    paint_all(tmp_path / "elsewhere", "x", "b")
    (images / "b").symlink_to(tmp_path / "elsewhere" / "b")
    assert "8 pictures of 2 classes" in fetch(tmp_path)


def test_all_faults_come_in_one_message(images: Path, tmp_path: Path) -> None:
    paint_all(images, "a", "b")
    paint(images / "a" / "tiny.png", 1000, size=(40, 15))
    paint(images / "loose.png", 1001)
    paint(images / "a" / "deeper" / "x.png", 1002)
    whole = (images / "a" / "0.png").read_bytes()
    (images / "b" / "copy.png").write_bytes(whole)
    (images / "b" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "b" / "notes.txt").write_text("remember the milk")
    (images / "b" / "nothing.jpg").write_bytes(b"")
    (images / "b" / "gone.png").symlink_to(tmp_path / "gone")
    (images / "c").mkdir()
    paint_all(images, "few", count=2)
    text = fault_of(tmp_path)
    for part in (
        "faults; nothing was packed",
        "a/tiny.png is 40 x 15 pixels",
        "loose.png is not inside a class folder",
        "a/deeper/ is a folder inside a class folder",
        "b/copy.png is the same file as a/0.png",
        "b/cut.png is broken",
        "b/notes.txt is not a picture",
        "b/nothing.jpg is not a picture that can be read: the file is empty",
        "b/gone.png is a broken link",
        "c/ is empty",
        "class few has 2 to learn from",
    ):
        assert part in text


def test_faults_between_splits_are_named(images: Path, tmp_path: Path) -> None:
    paint_all(images, "train/a", "train/b", "test/a", "test/c", "extra/a")
    (images / "test/a/leak.png").write_bytes((images / "train/a/0.png").read_bytes())
    (images / "train/loose.txt").write_text("x")
    text = fault_of(tmp_path)
    for part in (
        "train/a/0.png is the same file as test/a/leak.png",
        "class c is in the test split, but train/ has no such class",
        "extra/ stands beside train/",
        "train/loose.txt is not inside a class folder",
    ):
        assert part in text


@pytest.mark.parametrize("layout", ["missing", "empty", "only hidden"])
def test_folder_without_pictures_says_where_they_go(images: Path, tmp_path: Path, layout: str) -> None:
    if layout != "missing":
        images.mkdir(parents=True)
    if layout == "only hidden":
        (images / ".gitkeep").touch()
    assert "there are no pictures. Put pictures as <class>/<picture>" in fault_of(tmp_path)


def test_one_class_is_too_few(images: Path, tmp_path: Path) -> None:
    paint_all(images, "only")
    assert "at least two classes are needed, found only" in fault_of(tmp_path)


def test_one_picture_is_too_few(images: Path, tmp_path: Path) -> None:
    paint_all(images, "only", count=1)
    text = fault_of(tmp_path)
    assert "at least two classes are needed, found only" in text
    assert "class only has 1 to learn from; at least 3 pictures are needed" in text


@pytest.mark.parametrize("split", ["", "train/"])
def test_an_empty_class_is_named(images: Path, tmp_path: Path, split: str) -> None:
    paint_all(images, f"{split}a", f"{split}b")
    (images / f"{split}c").mkdir()
    assert f"{split}c/ is empty. Fill it or remove it." in fault_of(tmp_path)


def test_one_picture_in_many_files_is_refused_by_prepare(images: Path, tmp_path: Path) -> None:
    """The files differ, in a comment, so that no two are doubles; the pictures do not."""
    comment, pixels = PngInfo(), Image.new("RGB", (20, 20), "teal")
    pixels.putpixel((3, 3), (0, 0, 0))
    for number in range(8):
        comment.add_text("number", str(number))
        path = images / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels.save(path, pnginfo=comment)
    fetch(tmp_path)
    workspace = Workspace.at(tmp_path, {})
    with pytest.raises(DataIntegrityError, match="all 4 training pictures are alike, pixel by pixel"):
        prepare(read(tmp_path), source="folder", validation_fraction=0.1, seed=1, workspace=workspace)
    assert not workspace.dataset.exists()


def test_long_lists_of_faults_are_cut(images: Path, tmp_path: Path) -> None:
    paint_all(images, "a", "b")
    for index in range(30):
        (images / "a" / f"x{index}.png").write_bytes(b"no picture")
    text = fault_of(tmp_path)
    assert "has 30 faults" in text
    assert text.count("is not a picture") == 20
    assert "... and 10 more" in text


def test_changed_tar_or_list_is_noticed(images: Path, tmp_path: Path) -> None:
    paint_all(images, "a", "b")
    fetch(tmp_path)
    tar, listed = tmp_path / "data/raw/pictures.tar", tmp_path / "data/raw/pictures.json"
    content = bytearray(tar.read_bytes())
    content[600] ^= 255
    tar.write_bytes(content)
    with pytest.raises(DataIntegrityError, match=r"a/0.png in .*pictures.tar is not what was packed"):
        read(tmp_path)
    tar.write_bytes(b"")
    with pytest.raises(DataIntegrityError, match=r"pictures.tar is broken"):
        read(tmp_path)
    tar.unlink()
    with pytest.raises(MissingInputError):
        read(tmp_path)
    files.write_json(listed, {"pictures": [{"path": "x"}]})
    with pytest.raises(DataIntegrityError, match="not a list of pictures"):
        read(tmp_path)


@pytest.mark.skipif(not HYMENOPTERA.is_dir(), reason="needs ../shared/data/hymenoptera-sample")
def test_photographs_of_ants_and_bees(images: Path, tmp_path: Path) -> None:
    images.parent.mkdir(parents=True)
    images.symlink_to(HYMENOPTERA)
    assert "170 pictures of 2 classes" in fetch(tmp_path)
    raw = read(tmp_path, size=32)
    info = prepare(
        raw, source="folder", validation_fraction=0.02, seed=1, workspace=Workspace.at(tmp_path, {})
    )
    assert info.classes == ("ants", "bees")
    assert info.counts == {
        "train": {"ants": 45, "bees": 45},
        "validation": {"ants": 25, "bees": 25},
        "test": {"ants": 15, "bees": 15},
    }


def test_an_experiments_checkout_without_pictures_says_how_to_bring_them(tmp_path: Path) -> None:
    """Those at home are not what DVC takes for its input: it would give an earlier experiment's result."""
    paint_all(tmp_path / "home" / "data" / "images", "ant", "bumble bee")
    (tmp_path / "temporary" / "data" / "images").mkdir(parents=True)
    (tmp_path / "temporary" / "data" / "images" / ".gitkeep").touch()
    environ = {"DVC_ROOT": str(tmp_path / "home")}
    with pytest.raises(
        DataIntegrityError, match="dvc exp run --temp -C data/images/ant -C 'data/images/bumble bee'`"
    ):
        fetch(tmp_path / "temporary", environ)
    paint_all(tmp_path / "temporary" / "data" / "images", "ant", "bee")
    assert "8 pictures of 2 classes" in fetch(tmp_path / "temporary", environ)
