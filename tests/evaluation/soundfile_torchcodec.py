"""What `datasets` uses of torchcodec, through soundfile: for machines without the FFmpeg libraries it needs."""

import importlib.util
import io
import sys
from types import ModuleType, SimpleNamespace

import datasets
import soundfile
import torch


class AudioDecoder:
    """Samples of an encoded sound, `torchcodec.decoders.AudioDecoder` in small."""

    def __init__(self, source, *, stream_index=None, sample_rate=None, num_channels=None):
        samples, rate = soundfile.read(
            io.BytesIO(source) if isinstance(source, bytes) else source, dtype="float32", always_2d=True
        )
        assert sample_rate in (None, rate) and num_channels in (None, samples.shape[1]), "resampling is not provided"
        self.samples = SimpleNamespace(data=torch.from_numpy(samples.T.copy()), sample_rate=rate)
        self.metadata = SimpleNamespace(path=None, sample_rate=rate)

    def get_all_samples(self):
        return self.samples

    def get_samples_played_in_range(self, start_seconds, stop_seconds):
        return self.samples


class AudioEncoder:
    """Writes samples as a WAV file, `torchcodec.encoders.AudioEncoder` in small."""

    def __init__(self, samples, *, sample_rate):
        self.samples, self.rate = samples.reshape(-1, samples.shape[-1]), sample_rate

    def to_file_like(self, file, format, num_channels=None):
        soundfile.write(file, self.samples.numpy().T, self.rate, format=format, subtype="FLOAT")


class VideoDecoder:
    """Never made here; only asked for by name."""


def provide(monkeypatch) -> None:
    """Let `datasets` find these where torchcodec is not installed."""
    if importlib.util.find_spec("torchcodec") is not None:
        return
    root, decoders, encoders = (ModuleType(f"torchcodec{part}") for part in ("", ".decoders", ".encoders"))
    decoders.AudioDecoder, decoders.VideoDecoder, encoders.AudioEncoder = AudioDecoder, VideoDecoder, AudioEncoder
    root.decoders, root.encoders = decoders, encoders
    for module in (root, decoders, encoders):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "datasets.features._torchcodec", raising=False)
    monkeypatch.setattr(datasets.config, "TORCHCODEC_AVAILABLE", True)
