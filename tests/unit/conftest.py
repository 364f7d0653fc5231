"""A classifier that is right by construction, so that tests of its use need neither torch nor a training."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cifarflow.inference.metadata import INPUT, OUTPUT, ModelMetadata

COLOURS = ModelMetadata(
    classes=("red", "green", "blue"), image_size=32, architecture="colours", run_key="0" * 64
)


def colour_program() -> onnx.ModelProto:
    """An ONNX graph that names the colour of the top left pixel: softmax of its channels / 32."""
    constants = {"start": [0, 0], "end": [1, 1], "axes": [1, 2]}
    initializers = [
        numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()
    ]
    initializers.append(numpy_helper.from_array(np.array(32, np.float32), "scale"))
    nodes = [
        helper.make_node("Slice", [INPUT, "start", "end", "axes"], ["corner"]),
        helper.make_node("Squeeze", ["corner", "axes"], ["channels"]),
        helper.make_node("Cast", ["channels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["numbers", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], [OUTPUT], axis=1),
    ]
    images = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", "height", "width", 3])
    probabilities = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "colours", [images], [probabilities], initializers)
    program = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(program, COLOURS.to_properties())
    return program


@pytest.fixture
def colours() -> onnx.ModelProto:
    """The colour classifier, to be spoilt by a test or saved."""
    return colour_program()


@pytest.fixture(scope="session")
def colour_model(tmp_path_factory: pytest.TempPathFactory):
    """The colour classifier as a file; its classes are red, green and blue."""
    path = tmp_path_factory.mktemp("colours") / "model.onnx"
    path.write_bytes(colour_program().SerializeToString())
    return path
