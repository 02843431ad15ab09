"""A student in ONNX Runtime and under torch.compile, which take their time to load."""

import copy

import numpy as np
import pytest
import torch
from student_tools import FEWER, IMAGES, Named, network, student_of
from torch.export import Dim

pytestmark = pytest.mark.slow


def test_onnx_takes_named_dynamic_shapes(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    student = student_of(Named(), ["net.stage.0"])
    path = tmp_path / "student.onnx"
    torch.onnx.export(student, (FEWER,), path, dynamo=True, dynamic_shapes={"pixels": {0: Dim("batch")}}, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["pixels"]
    for images in (FEWER, IMAGES):
        (found,) = session.run(None, {"pixels": images.numpy()})
        np.testing.assert_allclose(found, student(images).detach(), atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_compile_takes_the_student_whole(train):
    student = student_of(network(num_blocks=1), ["stage.0.2"]).train(train)
    twin = copy.deepcopy(student)
    compiled = torch.compile(student, backend="aot_eager", fullgraph=True)
    outputs = [module(IMAGES) for module in (compiled, twin)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for ours, other in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(student.state_dict(), twin.state_dict())
