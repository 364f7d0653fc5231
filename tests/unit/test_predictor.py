import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from cifarflow.errors import CheckpointError, DataIntegrityError, MissingInputError
from cifarflow.inference.metadata import ModelMetadata
from cifarflow.inference.predictor import Predictor

RED, GREEN, BLUE = (230, 10, 10), (10, 230, 10), (10, 10, 230)
ROTATED_BY_90 = 6  # EXIF: the top of the picture is stored as its right side
ORIENTATION = 0x0112


@pytest.fixture
def predictor(colour_model: Path) -> Predictor:
    return Predictor(colour_model)


def picture_bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def plain(colour: tuple[int, int, int] = RED) -> Image.Image:
    return Image.new("RGB", (20, 12), colour)


def rotated() -> bytes:
    """Upright its upper left is blue; as stored, the upper left is red."""
    stored = plain(RED)
    stored.paste(BLUE, (0, 6, 10, 12))
    exif = Image.Exif()
    exif[ORIENTATION] = ROTATED_BY_90
    return picture_bytes(stored, "PNG", exif=exif)


def palette_with_alpha() -> bytes:
    image = Image.new("RGBA", (20, 12), (*GREEN, 255))
    image.paste((0, 0, 0, 0), (10, 0, 20, 12))
    return picture_bytes(image.quantize(4), "PNG")


PICTURES = {
    "jpeg": (picture_bytes(plain(), "JPEG"), "red"),
    "png": (picture_bytes(plain(GREEN), "PNG"), "green"),
    "webp": (picture_bytes(plain(BLUE), "WEBP"), "blue"),
    "cmyk": (picture_bytes(plain(BLUE).convert("CMYK"), "JPEG"), "blue"),
    "palette with alpha": (palette_with_alpha(), "green"),
    "rotated by exif": (rotated(), "blue"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_names_what_is_on_every_kind_of_picture(predictor: Predictor, kind: str) -> None:
    content, label = PICTURES[kind]
    answers = predictor.classify(content, top=2)
    assert answers[0].label == label
    assert len(answers) == 2
    assert answers[0].probability > 0.9 > answers[1].probability


def test_a_picture_by_path_and_by_bytes_is_the_same(predictor: Predictor, tmp_path: Path) -> None:
    content, _ = PICTURES["jpeg"]
    (tmp_path / "a.jpg").write_bytes(content)
    assert predictor.classify(tmp_path / "a.jpg", top=3) == predictor.classify(content, top=3)


def test_top_beyond_the_classes_gives_all_in_falling_order(predictor: Predictor) -> None:
    answers = predictor.classify(PICTURES["png"][0], top=99)
    probabilities = [answer.probability for answer in answers]
    assert len(answers) == 3
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)


def test_reads_the_facts_of_the_file(predictor: Predictor) -> None:
    assert predictor.classes == ("red", "green", "blue")
    assert predictor.metadata.architecture == "colours"
    assert predictor.metadata.run_key == "0" * 64


def test_metadata_survives_names_beyond_ascii() -> None:
    written = ModelMetadata(classes=("猫", "naïve"), image_size=24, architecture="a", run_key="k")
    assert ModelMetadata.from_properties(written.to_properties()) == written


def test_a_batch_gives_a_row_a_picture(predictor: Predictor) -> None:
    images = np.array([[[RED]], [[BLUE]]], dtype=np.uint8)
    probabilities = predictor.predict(images)
    assert probabilities.shape == (2, 3)
    assert probabilities.dtype == np.float32
    assert probabilities.argmax(1).tolist() == [0, 2]


def test_no_pictures_give_no_rows(predictor: Predictor) -> None:
    assert predictor.predict(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, 3)


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3, 8, 8), np.uint8)],
    ids=["floats", "no batch", "channels first"],
)
def test_refuses_arrays_that_are_not_pictures(predictor: Predictor, images: np.ndarray) -> None:
    with pytest.raises(DataIntegrityError, match=r"uint8 \[N, H, W, 3\] in RGB, got"):
        predictor.predict(images)


def test_refuses_bytes_that_are_not_a_picture(predictor: Predictor) -> None:
    with pytest.raises(DataIntegrityError):
        predictor.classify(b"<html>no picture</html>", top=1)


def test_a_missing_model_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="dvc repro export"):
        Predictor(tmp_path / "model.onnx")


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Predictor(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("keep", [0, 100, -1], ids=["empty", "the start of it", "all but one byte"])
def test_refuses_a_truncated_model(colour_model: Path, tmp_path: Path, keep: int) -> None:
    assert "not a whole ONNX model" in refusal(tmp_path / "m.onnx", colour_model.read_bytes()[:keep])


def test_refuses_garbage(tmp_path: Path) -> None:
    assert "not a whole ONNX model" in refusal(tmp_path / "m.onnx", b"version https://git-lfs...\n" * 9)


def test_refuses_names_that_are_not_text(colours: onnx.ModelProto, tmp_path: Path, capfd) -> None:
    broken = colours.SerializeToString().replace(b"Squeeze", b"Sq\xe1eeze")
    assert "not a whole ONNX model" in refusal(tmp_path / "m.onnx", broken)
    assert capfd.readouterr() == ("", "")


def test_refuses_a_model_of_another_project(colours: onnx.ModelProto, tmp_path: Path) -> None:
    del colours.metadata_props[:]
    assert "not one of this pipeline" in refusal(tmp_path / "m.onnx", colours.SerializeToString())


def test_refuses_names_that_do_not_fit_the_output(colours: onnx.ModelProto, tmp_path: Path) -> None:
    facts = ModelMetadata(classes=("only", "two"), image_size=32, architecture="a", run_key="k")
    onnx.helper.set_model_props(colours, facts.to_properties())
    assert "expected probabilities, float32 [batch, 2]" in refusal(
        tmp_path / "m.onnx", colours.SerializeToString()
    )


def test_refuses_metadata_of_another_format(colours: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.helper.set_model_props(colours, {"cifarflow.format": "2"})
    assert "cifarflow.format is '2', expected '1'" in refusal(
        tmp_path / "m.onnx", colours.SerializeToString()
    )


def test_refuses_weights_in_a_second_file(
    colours: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(colours, path, save_as_external_data=True, location="m.data", size_threshold=0)
    monkeypatch.chdir(tmp_path)  # where onnxruntime would find the second file
    assert "second file" in refusal(path, path.read_bytes())


def test_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        Predictor(tmp_path)
