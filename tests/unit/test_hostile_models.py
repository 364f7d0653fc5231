"""Model files that are broken, are something else, or want what no model needs: memory, other files, code."""

import json
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cifarflow import cli, files
from cifarflow.errors import CheckpointError, CifarflowError, DataIntegrityError
from cifarflow.inference.metadata import INPUT, OUTPUT, PREFIX
from cifarflow.inference.predictor import Predictor
from cifarflow.models.bundle import load_model, read_description
from tests.support.hostile import PROMISED_BYTES, Exploit, cifarflow, one_line
from tests.unit.conftest import COLOURS, colour_program

# exported models ----------------------------------------------------------------------------------------------------


def refusal(path: Path, content: bytes) -> str:
    """The line that `cifarflow predict` would print, from loading it or from its first answer."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Predictor(path).classify(b"P6 2 2 255\n" + bytes(12), top=1)
    assert str(path) in str(caught.value)
    return one_line(str(caught.value))


def with_weights_at(location: str) -> bytes:
    """The colour classifier with its scale in another file."""
    program = colour_program()
    (scale,) = (tensor for tensor in program.graph.initializer if tensor.name == "scale")
    scale.ClearField("raw_data")
    scale.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        entry = scale.external_data.add()
        entry.key, entry.value = key, value
    return program.SerializeToString()


@pytest.mark.parametrize(
    "location",
    ["weights", "../weights", "{root}/weights", "m.onnx/../weights", "x/../../weights", "/dev/zero", "",
     "*/_ORT_MEM_ADDR_/*"],
)  # fmt: skip
def test_weights_outside_of_the_file_are_refused_wherever_they_are(
    tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    for place in (tmp_path, tmp_path / "folder"):
        (place / "weights").write_bytes(np.array(32, np.float32).tobytes())
    monkeypatch.chdir(tmp_path / "folder")
    content = with_weights_at(location.format(root=tmp_path))
    assert "second file" in refusal(tmp_path / "folder" / "m.onnx", content) or location.startswith("*")


def zipped(folder: Path) -> bytes:
    """What torch.save writes."""
    path = folder / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(Exploit(folder / "proof")))
    return path.read_bytes()


@pytest.mark.parametrize(
    "kind", ["pickle", "torch", "onnxruntime's own", "tflite", "safetensors", "page", "length"]
)
def test_another_format_is_refused_and_runs_nothing(tmp_path: Path, kind: str) -> None:
    contents = {
        "pickle": pickle.dumps(Exploit(tmp_path / "proof")),
        "torch": zipped(tmp_path),
        "onnxruntime's own": b"\x10\0\0\0ORTM" + bytes(range(256)) * 8,
        "tflite": b"\x1c\0\0\0TFL3" + bytes(100),
        "safetensors": struct.pack("<Q", 2) + b"{}",
        "page": b"<html></html>" * 20,
        "length": b"\x3a\xff\xff\xff\xff\7x",
    }
    assert "is not a whole ONNX model" in refusal(tmp_path / "m.onnx", contents[kind])
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", "[" * 100_000),
        ("classes", '{"a": 1}'),
        ("classes", "[1, 2, 3]"),
        ("classes", "[" + "9" * 10_000 + "]"),
        ("classes", "null"),
        ("image_size", "9" * 10_000),
        ("image_size", "nan"),
        ("format", "\x1b[31m\n1"),
    ],
)
def test_hostile_facts_in_a_model_are_one_line(tmp_path: Path, key: str, value: str) -> None:
    program = colour_program()
    helper.set_model_props(program, {**COLOURS.to_properties(), f"{PREFIX}{key}": value})
    assert "not one of this pipeline" in refusal(tmp_path / "m.onnx", program.SerializeToString())


def test_class_names_cannot_spoil_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = colour_program()
    names = ["a\nb", "\x1b[31mred", "c\r"]
    helper.set_model_props(program, {**COLOURS.to_properties(), f"{PREFIX}classes": json.dumps(names)})
    (tmp_path / "m.onnx").write_bytes(program.SerializeToString())
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    assert cli.main(["predict", str(tmp_path / "p.png"), "--model", str(tmp_path / "m.onnx")]) == 0
    one_line(capsys.readouterr().out)


def program_of(
    *nodes: onnx.NodeProto, constants: Mapping[str, Sequence[int]], output: Sequence[str | int]
) -> bytes:
    images = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", "height", "width", 3])
    probabilities = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, list(output))
    values = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "hostile", [images], [probabilities], values)
    program = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(program, COLOURS.to_properties())
    return program.SerializeToString()


FLOATS = helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT)
MEAN = helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0)


def test_answers_that_are_no_probabilities_are_refused(tmp_path: Path) -> None:
    nothing = helper.make_node("Sub", ["mean", "mean"], ["nothing"])
    undefined = helper.make_node("Div", ["nothing", "nothing"], [OUTPUT])
    content = program_of(FLOATS, MEAN, nothing, undefined, constants={"axes": [1, 2]}, output=("batch", 3))
    assert "gives numbers that are not finite" in refusal(tmp_path / "m.onnx", content)


def test_a_graph_that_fails_is_one_line(tmp_path: Path) -> None:
    shape = helper.make_node("Reshape", ["floats", "shape"], ["shaped"])
    mean = helper.make_node("ReduceMean", ["shaped", "axes"], [OUTPUT], keepdims=0)
    constants = {"axes": [1, 2], "shape": [-1, 7, 11, 3]}
    content = program_of(FLOATS, shape, mean, constants=constants, output=("batch", 3))
    assert "fails on a picture" in refusal(tmp_path / "m.onnx", content)


@pytest.mark.parametrize("shape", [(1000, 1000, 1000), (100_000, 100_000)], ids=["4 GB", "40 GB"])
def test_a_graph_that_wants_all_memory_does_not_get_it(tmp_path: Path, shape: tuple[int, ...]) -> None:
    one = numpy_helper.from_array(np.array([1], np.float32))
    nodes = (
        FLOATS,
        MEAN,
        helper.make_node("ConstantOfShape", ["shape"], ["much"], value=one),
        helper.make_node("ReduceSum", ["much"], ["sum"], keepdims=0),
        helper.make_node("Add", ["mean", "sum"], [OUTPUT]),
    )
    content = program_of(*nodes, constants={"axes": [1, 2], "shape": shape}, output=("batch", 3))
    (tmp_path / "m.onnx").write_bytes(content)
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    ended = cifarflow("predict", "p.png", "--model", "m.onnx", folder=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert one_line(ended.err).startswith("error: m.onnx fails on a picture")
    assert ended.peak_bytes < PROMISED_BYTES / 4


def test_a_file_far_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "m.onnx").open("wb") as stream:
        stream.truncate(20 << 30)
    ended = cifarflow("predict", "p.png", "--model", "m.onnx", folder=tmp_path)
    assert ended.code == 2
    assert "m.onnx is larger than 600 MiB" in one_line(ended.err)
    assert ended.peak_bytes < PROMISED_BYTES


# trained models -----------------------------------------------------------------------------------------------------

DESCRIPTION = {
    "architecture": "tudui",
    "options": {"activation": "none", "batch_norm": False, "hidden": 64},
    "classes": ["a", "b"],
    "image_size": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "run_key": "ab" * 32,
}


def tensors(header: object, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def one(kind: str, shape: list[int], size: int) -> bytes:
    return tensors({"images": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}, bytes(size))


WEIGHTS = {
    "nothing": b"",
    "cut": one("U8", [4], 4)[:-1],
    "a header of 2^62 bytes": struct.pack("<Q", 1 << 62) + b"{}",
    "a header of 100 MB": struct.pack("<Q", 100_000_000) + b"{" + b" " * 100,
    "a header of brackets": tensors(b'{"a":' + b"[" * 100_000),
    "a pickle": pickle.dumps(Exploit(Path("proof"))),
    "torch's zip": b"PK\3\4" + bytes(200),
    "sizes that overflow": one("U8", [1 << 40, 1 << 40], 1),
    "a size below zero": one("U8", [-1], 1),
    "overlapping tensors": tensors(
        {name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]} for name in "ab"}, b"x"
    ),
    "a type that NumPy lacks": one("F8_E4M3", [1], 1),
    "half a byte": one("F4", [2], 1),
}


@pytest.mark.parametrize("attack", WEIGHTS)
def test_hostile_weights_are_one_fault(tmp_path: Path, attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights, description = tmp_path / "model.safetensors", tmp_path / "model.json"
    weights.write_bytes(WEIGHTS[attack])
    files.write_json(description, DESCRIPTION)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(weights, description)
    with pytest.raises(DataIntegrityError, match=r"model\.safetensors is broken"):
        files.read_tensors(weights)
    assert not (tmp_path / "proof").exists()


def test_a_sound_description_is_read(tmp_path: Path) -> None:
    """What the tests below spoil one fact of."""
    files.write_json(tmp_path / "model.json", DESCRIPTION)
    assert read_description(tmp_path / "model.json").run_key == DESCRIPTION["run_key"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run_key", "/tmp/evil"),
        ("run_key", "../" * 4 + "a" * 52),
        ("run_key", "ab" * 31),
        ("run_key", "AB" * 32),
        ("run_key", "ab" * 32 + "\n"),
        ("run_key", "\u0661" * 64),  # a digit, though none of ours
        ("run_key", 10**63),
        ("run_key", None),
        ("classes", []),
        ("classes", [1, 2]),
        ("mean", ["a", "b", "c"]),
        ("mean", [0.5, 0.5]),
        ("std", [float("nan")] * 3),
        ("std", [10**400] * 3),
    ],
)
def test_a_description_with_one_hostile_fact_is_refused_by_its_name(
    tmp_path: Path, key: str, value: object
) -> None:
    path = tmp_path / "model.json"
    files.write_json(path, {**DESCRIPTION, key: value})
    with pytest.raises(
        DataIntegrityError, match=rf"model\.json is not a model's description: `{key}` .*dvc checkout"
    ):
        read_description(path)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 10_000,
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe{}",
        json.dumps({**DESCRIPTION, "classes": 5}).encode(),
        json.dumps({**DESCRIPTION, "more": 1}).encode(),
        json.dumps({**DESCRIPTION, "architecture": "../../etc"}).encode(),
        json.dumps({**DESCRIPTION, "architecture": ["tudui"]}).encode(),
        json.dumps({**DESCRIPTION, "options": []}).encode(),
        json.dumps({**DESCRIPTION, "options": {"no": "such"}}).encode(),
        json.dumps({**DESCRIPTION, "image_size": "32"}).encode(),
        json.dumps({**DESCRIPTION, "image_size": 10**400}).encode(),
        json.dumps({**DESCRIPTION, "options": {**DESCRIPTION["options"], "hidden": 1 << 50}}).encode(),
    ],
    ids=lambda content: repr(content[:20] + b"..." + content[-60:]),
)
def test_a_hostile_description_is_one_fault(tmp_path: Path, content: bytes) -> None:
    weights, description = tmp_path / "model.safetensors", tmp_path / "model.json"
    weights.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}))
    description.write_bytes(content)
    with pytest.raises(CifarflowError):
        load_model(weights, description)
