"""A small MobileNet as ONNX, with or without the quantisation nodes that YAMNet's file has."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

CONVOLUTIONS = ((1, 4, 3, 2, 1), (4, 4, 3, 1, 4), (4, 8, 1, 1, 1))  # inputs, outputs, width, stride, groups


def graph(quantized):
    """A small MobileNet as ONNX, with or without the quantisation nodes that the package's file has."""
    rng = np.random.default_rng(0)
    arrays, nodes, last = {"scale": np.float32(10.0), "zero": np.uint8(0)}, [], "audio"

    def round_trip(name):
        if not quantized:
            return name
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_dq"]))
        return f"{name}_dq"

    for k, (inputs, outputs, width, stride, groups) in enumerate(CONVOLUTIONS):
        arrays[f"w{k}"] = rng.normal(0, 0.5, (outputs, inputs // groups, width, width)).astype(np.float32)
        arrays[f"b{k}"] = rng.normal(0, 0.5, outputs).astype(np.float32)
        pads = {(3, 2): [0, 0, 1, 1], (3, 1): [1, 1, 1, 1], (1, 1): [0, 0, 0, 0]}[width, stride]
        node = helper.make_node(
            "Conv", [last, round_trip(f"w{k}"), f"b{k}"], [f"c{k}"], pads=pads, strides=[stride] * 2, group=groups
        )
        nodes += [node, helper.make_node("Relu", [f"c{k}"], [f"r{k}"])]
        last = round_trip(f"r{k}")
    arrays |= {"w": rng.normal(0, 1, (5, 8)).astype(np.float32), "b": rng.normal(0, 1, 5).astype(np.float32)}
    arrays["shape"] = np.array([-1, 8])
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Reshape", ["pooled", "shape"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", round_trip("w"), "b"], ["scores"], transB=1))
    made = helper.make_graph(
        nodes,
        "yamnet",
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["n", 1, 96, 64])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
