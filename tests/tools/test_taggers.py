"""YAMNet and aiSFX read from files as their packages have them, against the networks written out."""

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import save
from tools.teachers.aisfx import AiSFX
from tools.teachers.yamnet import YAMNet

from yamnet_graph import graph


def test_yamnet_is_the_float_network_inside_the_quantized_file(tmp_path):
    """Against ONNX Runtime on the same weights without quantisation nodes, whose scale of 10 would leave nothing."""
    save(graph(quantized=True), tmp_path / "model.onnx")
    save(graph(quantized=False), tmp_path / "float.onnx")
    network = YAMNet(tmp_path / "model.onnx")
    samples = torch.randn(40_000, generator=torch.Generator().manual_seed(0)) * 0.1
    patches = network.log_mel(samples)
    assert patches.shape == (4, 1, 96, 64)
    expected = onnxruntime.InferenceSession(tmp_path / "float.onnx").run(None, {"audio": patches.numpy()})[0]
    embeddings, logits = network.predict(samples)
    torch.testing.assert_close(logits, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    assert torch.equal(
        network(samples), torch.cat([embeddings.mean(0), embeddings.amax(0), logits.mean(0), logits.amax(0)])
    )


def test_yamnet_frames_are_25_ms_every_10_ms(tmp_path):
    """A tone lies in the band of its frequency; a clip of one patch gives one."""
    save(graph(quantized=True), tmp_path / "model.onnx")
    network = YAMNet(tmp_path / "model.onnx")
    tone = torch.sin(2 * np.pi * 1000 * torch.arange(15_600) / 16_000)
    (patch,) = network.log_mel(tone)
    mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)  # noqa: E731
    band = (mel(1000) - mel(125)) / (mel(7500) - mel(125)) * 65 - 1
    assert abs(patch[0].mean(dim=0).argmax().item() - band) < 1
    assert network.log_mel(tone[:9_000]).shape == (1, 1, 96, 64)


def aisfx_state():
    """Weights by the package's names, and its table of data sets with NumPy numbers in it."""
    generator, state, inputs = torch.Generator().manual_seed(0), {}, 1
    for block, outputs in enumerate((2, 3, 4, 5), 1):
        for part, width in ((1, inputs), (2, outputs)):
            name = f"embedding_net.conv_block{block}"
            state[f"{name}.conv{part}.weight"] = torch.randn(outputs, width, 3, 3, generator=generator)
            for key in ("weight", "bias", "running_mean"):
                state[f"{name}.bn{part}.{key}"] = torch.randn(outputs, generator=generator)
            state[f"{name}.bn{part}.running_var"] = torch.rand(outputs, generator=generator) + 0.5
        inputs = outputs
    return state


def test_aisfx_is_convolution_batch_norm_and_pooling(tmp_path):
    state = aisfx_state()
    torch.save((state, {"library": (np.float64(0), np.int64(9))}), tmp_path / "checkpoint.pth")
    network = AiSFX(tmp_path / "checkpoint.pth")
    samples = torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    hidden = network.log_mel(samples)
    assert hidden.shape == (2, 1, 100, 96)  # of 196 frames, hop 50: what is left over is dropped
    torch.testing.assert_close(network.log_mel(samples * 0.1), hidden)  # by the peak
    assert network.log_mel(samples[:9_000]).shape == (1, 1, 100, 96)
    for block in range(1, 5):
        for part in (1, 2):
            name = f"embedding_net.conv_block{block}"
            norm = [state[f"{name}.bn{part}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
            hidden = F.conv2d(hidden, state[f"{name}.conv{part}.weight"], padding=1)
            hidden = F.batch_norm(hidden, *norm).relu()
        hidden = F.max_pool2d(hidden, 2) if block < 4 else hidden
    expected = hidden.mean(dim=3).amax(dim=2)
    torch.testing.assert_close(
        network(samples), torch.cat([expected.mean(dim=0), expected.amax(dim=0)]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("network", [YAMNet, AiSFX])
@pytest.mark.parametrize("content", [b"", b"not weights"])
def test_another_file_is_refused(network, content, tmp_path):
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(ValueError, match="weights is not .* of the package"):
        network(tmp_path / "weights")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return print, ("owned",)

    torch.save((aisfx_state(), Attack()), tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="not the checkpoint of the package aisfx"):
        AiSFX(tmp_path / "checkpoint.pth")
