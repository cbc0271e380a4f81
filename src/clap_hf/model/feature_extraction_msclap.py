# Copyright 2026 The clap_hf authors. MIT License.
"""Feature extractor of Microsoft CLAP: audio at any stated sampling rate to log-mel windows, in torch."""

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from transformers.audio_utils import mel_filter_bank
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils.generic import maybe_autocast

LONG_AUDIO = ("windows", "center", "random")
SHORT_AUDIO = ("repeat", "pad")
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; outside of it a "rate" is a mistake
MAX_CHANNELS = 8  # a 2-D array's shorter side up to this is its channels: 7.1 surround has the most in use
MAX_AMPLITUDE = 100.0  # float audio is in [-1, 1]; far beyond it, integer samples were not scaled
MAX_CONVOLUTION = 2**22  # weights of a resampling convolution
GPU_WINDOWS = 64  # that are transformed at once: 7 s each take half a gigabyte
BASE_CLASS_NAMES = {"auto_map", "feature_extractor_type", "padding_side", "processor_class", "return_attention_mask"}
INTEGER_SCALE = {torch.int16: 2.0**15, torch.int32: 2.0**31, torch.int8: 2.0**7}


@runtime_checkable
class AudioDecoderLike(Protocol):
    """What `torchcodec.decoders.AudioDecoder` (and the `Audio` column of datasets) offers."""

    def get_all_samples(self) -> Any: ...


def check_sampling_rate(sampling_rate: int | float | None, name: str) -> int:
    """Validate a sampling rate, Hz, given for the audio called `name`."""
    if sampling_rate is None:
        raise ValueError(
            f"{name} has no sampling rate: samples alone do not carry it. "
            "Pass sampling_rate= in Hz, or a dict {'array': ..., 'sampling_rate': ...}."
        )
    if isinstance(sampling_rate, (np.ndarray, torch.Tensor)) and sampling_rate.ndim == 0:
        sampling_rate = sampling_rate.item()  # what a dataset in numpy or torch format holds
    is_number = isinstance(sampling_rate, (int, float, np.integer, np.floating))
    if (
        not is_number
        or isinstance(sampling_rate, bool)
        or sampling_rate != sampling_rate
        or not MIN_RATE <= sampling_rate <= MAX_RATE
    ):
        raise ValueError(
            f"{name} has sampling rate {sampling_rate!r}, expected {MIN_RATE} to {MAX_RATE} Hz. "
            "Pass the rate that the audio was recorded or decoded at."
        )
    if sampling_rate != int(sampling_rate):
        raise ValueError(f"{name} has sampling rate {sampling_rate!r}, expected a whole number of Hz.")
    return int(sampling_rate)


def to_mono(audio: Any, name: str) -> torch.Tensor:
    """One clip as mono float32.

    Args:
        audio: Samples as a numpy array, torch tensor or list of floats: `[samples]`, `[channels, samples]` or
            `[samples, channels]`; float in [-1, 1] or an integer type at full scale.
        name: What error messages call the clip.

    Returns:
        `[samples]`, float32, the mean of the channels.

    Raises:
        TypeError: If it is not audio samples.
        ValueError: If the shape is ambiguous, the clip is empty, or samples are NaN, infinite or unscaled.
    """
    if isinstance(audio, (list, tuple)):
        audio = np.asarray(audio)
    if isinstance(audio, np.ndarray):
        if audio.dtype == object or audio.dtype.kind not in "fiu":
            raise TypeError(f"{name} holds {audio.dtype} values, expected float or integer samples.")
        # torch takes neither foreign byte orders nor negative strides, and warns about read-only memory.
        audio = torch.from_numpy(np.require(audio, audio.dtype.newbyteorder("="), ["C", "W"]))
    if not isinstance(audio, torch.Tensor):
        raise TypeError(
            f"{name} is a {type(audio).__name__}, expected samples (numpy array, torch tensor, list of floats), "
            "a dict {'array': ..., 'sampling_rate': ...}, an AudioDecoder or the path of a file."
        )
    audio = audio.detach()
    if audio.numel() == 0:
        raise ValueError(f"{name} is empty (shape {tuple(audio.shape)}), expected at least one sample.")
    if audio.ndim == 2:
        channel_dim = 0 if audio.shape[0] < audio.shape[1] else 1
        if audio.shape[channel_dim] > MAX_CHANNELS or audio.shape[0] == audio.shape[1] > 1:
            raise ValueError(
                f"{name} has shape {tuple(audio.shape)}: neither side can be its channels (at most {MAX_CHANNELS}, "
                "and fewer than samples). One clip is [samples], [channels, samples] or [samples, channels]; "
                "pass several clips as a list, list(array) for the rows of an array."
            )
    elif audio.ndim != 1:
        raise ValueError(
            f"{name} has shape {tuple(audio.shape)}, expected [samples], [channels, samples] or [samples, channels]. "
            "Pass several clips as a list."
        )
    if audio.is_floating_point():
        samples = audio.float()
    elif audio.dtype in INTEGER_SCALE:
        samples = audio.float() / INTEGER_SCALE[audio.dtype]
    elif audio.dtype == torch.uint8:
        samples = (audio.float() - 128.0) / 128.0
    else:
        raise TypeError(f"{name} holds {audio.dtype} samples, expected float, int8, int16, int32 or uint8.")
    if audio.ndim == 2:
        samples = samples.mean(dim=channel_dim)
    peak = samples.abs().max()
    if not torch.isfinite(peak):
        raise ValueError(f"{name} holds NaN or infinite samples. Repair or drop the clip.")
    if peak > MAX_AMPLITUDE:
        raise ValueError(
            f"{name} has float samples up to {peak:g}, expected [-1, 1]. Divide 16-bit values by 32,768, "
            "or pass them in their integer type."
        )
    return samples


def read_file(path: str | os.PathLike, name: str) -> tuple[np.ndarray, int]:
    """Decode a sound file with soundfile; `clap_hf.load_audio` knows more formats, and reports damage.

    Args:
        path: The file.
        name: What error messages call the clip.

    Returns:
        Samples `[channels, samples]`, float32, and their rate, Hz.

    Raises:
        ValueError: If it is a URL, or no sound file that soundfile reads.
        ImportError: If soundfile is not installed.
    """
    if "://" in os.fspath(path):
        raise ValueError(f"{name} is the URL {path}, expected a file. Download it first: nothing is fetched here.")
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(
            f"{name} is the file {path}, which needs soundfile to decode: pip install soundfile"
        ) from error
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{name}, {path}: {error} Expected a sound file, or samples.") from error
    return samples.T, rate


def resample(
    samples: torch.Tensor, rate: int, new_rate: int, phase_dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Resample by windowed-sinc interpolation, equal to `torchaudio.functional.resample` at its defaults.

    Written out here because this file ships to the Hub, where only torch and transformers may be imported; the
    reference implementation resamples with torchaudio's defaults (Hann window, 6 zero crossings, roll-off 0.99).
    Kernels are computed in float64, where torchaudio's phases are float32: samples differ by about 1e-5.

    Args:
        samples: `[samples]`, float32, at `rate`.
        rate: Hz.
        new_rate: Hz.
        phase_dtype: float32 for torchaudio's own rounding.

    Returns:
        `[ceil(samples * new_rate / rate)]`, float32, at `new_rate`.
    """
    if rate == new_rate:
        return samples
    with maybe_autocast(samples.device.type, enabled=False):  # half precision would lose 16-bit audio
        return _resample(samples, rate, new_rate, phase_dtype)


def _resample(samples: torch.Tensor, rate: int, new_rate: int, phase_dtype: torch.dtype) -> torch.Tensor:
    """`resample` between different rates, in the samples' own precision."""
    divisor = math.gcd(rate, new_rate)
    rate, new_rate = rate // divisor, new_rate // divisor
    cutoff = min(1.0, new_rate / rate) * 0.99
    width = math.ceil(6 / cutoff)  # input samples on each side that an output sample depends on
    total = math.ceil(new_rate * samples.shape[0] / rate)

    def kernels(offset: torch.Tensor) -> torch.Tensor:
        time = (offset * cutoff).clamp(-6, 6)
        return (torch.sinc(time) * torch.cos(time * math.pi / 12) ** 2 * cutoff).to(samples)

    if rate * new_rate <= MAX_CONVOLUTION:
        # `rate` input samples make `new_rate` output samples, each by its own kernel.
        phase = torch.arange(new_rate, dtype=torch.float64)[:, None] * rate / new_rate
        if phase_dtype != torch.float64:
            phase = (torch.arange(new_rate, dtype=phase_dtype)[:, None] / new_rate).double() * rate
        weights = kernels(torch.arange(-width, width + rate, dtype=torch.float64) - phase)[:, None]
        padded = F.pad(samples[None, None], (width, width + rate))
        return F.conv1d(padded, weights, stride=rate).transpose(1, 2).reshape(-1)[:total]

    # Rates with few common divisors (44,056 Hz): those kernels would be almost all zeros, and gigabytes.
    phase = (torch.arange(min(new_rate, total)) * rate % new_rate).double() / new_rate
    weights = kernels(torch.arange(-width, width + 2, dtype=torch.float64) - phase[:, None])
    neighbours = F.pad(samples, (width, width + 2)).unfold(0, weights.shape[1], 1)
    blocks = []
    for start in range(0, total, 2**17):
        output = torch.arange(start, min(start + 2**17, total), device=samples.device)
        blocks.append((neighbours[output * rate // new_rate] * weights[output % new_rate]).sum(dim=1))
    return torch.cat(blocks)


def pad_windows(clips: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack clips of different numbers of windows.

    Args:
        clips: Log-mels of each clip, `[windows, 1, frames, mel]`.

    Returns:
        `[clips, most windows, 1, frames, mel]`, with zeros after a clip's last window.
    """
    return torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True)


class MSClapFeatureExtractor(SequenceFeatureExtractor):
    """Audio to log-mel windows, deterministic unless asked to crop at random.

    Args:
        feature_size: Mel bins.
        sampling_rate: Rate of the model's input, Hz; other rates are resampled to it.
        duration_s: Length of a window, s.
        n_fft: Length of the Fourier transform and of its Hann window, samples.
        hop_length: Hop between frames, samples.
        fmin: Lowest frequency of the mel filters, Hz.
        fmax: Highest frequency of the mel filters, Hz.
        mel_sampling_rate: Rate the mel filters are designed for, Hz; `sampling_rate` when None. The released 2023
            code designs them for 32,000 Hz and then feeds 44,100 Hz audio, which scales every edge by 44.1 / 32.
        long_audio: What happens to clips longer than a window: `"windows"` covers the whole clip by evenly spaced
            windows (the model averages their embeddings), `"center"` keeps the middle, `"random"` crops at random
            (for training; needs a generator).
        short_audio: What happens to shorter clips: `"repeat"` fills the window with repetitions (as released),
            `"pad"` with zeros.
        max_windows: Windows of a clip at most under `long_audio="windows"`, evenly spaced over the clip; as many as
            cover it when None.
        padding_value: Required by the base class; zero-padding is the only kind.

    Source: paper Section 3, "Pre-processing"; `msclap.CLAPWrapper` and torchlibrosa for the exact log-mel.
    """

    model_input_names = ["input_features", "num_windows"]

    def __init__(
        self,
        feature_size: int = 64,
        sampling_rate: int = 44_100,
        duration_s: float = 7.0,
        n_fft: int = 1024,
        hop_length: int = 320,
        fmin: float = 50.0,
        fmax: float = 8_000.0,
        mel_sampling_rate: int | None = None,
        long_audio: str = "windows",
        short_audio: str = "repeat",
        max_windows: int | None = None,
        padding_value: float = 0.0,
        **kwargs: Any,  # BASE_CLASS_NAMES, which saved files hold
    ):
        unknown = sorted(set(kwargs) - BASE_CLASS_NAMES)
        if unknown:
            raise TypeError(f"MSClapFeatureExtractor got unknown settings {unknown}, see its documentation.")
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.duration_s = duration_s
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.fmin = fmin
        self.fmax = fmax
        self.mel_sampling_rate = sampling_rate if mel_sampling_rate is None else mel_sampling_rate
        self.long_audio = long_audio
        self.short_audio = short_audio
        self.max_windows = max_windows
        self._check_policies(long_audio, short_audio, max_windows)
        self.mel_filters = mel_filter_bank(
            num_frequency_bins=n_fft // 2 + 1,
            num_mel_filters=feature_size,
            min_frequency=fmin,
            max_frequency=fmax,
            sampling_rate=self.mel_sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        ).astype(np.float32)

    @property
    def window_samples(self) -> int:
        """Length of a window, samples at `sampling_rate`."""
        return round(self.duration_s * self.sampling_rate)

    @staticmethod
    def _check_policies(long_audio: str, short_audio: str, max_windows: int | None) -> None:
        if long_audio not in LONG_AUDIO:
            raise ValueError(f"long_audio is {long_audio!r}, expected one of {LONG_AUDIO}.")
        if short_audio not in SHORT_AUDIO:
            raise ValueError(f"short_audio is {short_audio!r}, expected one of {SHORT_AUDIO}.")
        if max_windows is not None and (not isinstance(max_windows, int) or max_windows < 1):
            raise ValueError(f"max_windows is {max_windows!r}, expected 1 or more windows a clip, or None.")

    def __call__(
        self,
        raw_audio: Any,
        sampling_rate: int | None = None,
        *,
        long_audio: str | None = None,
        short_audio: str | None = None,
        max_windows: int | None = None,
        generator: torch.Generator | None = None,
        device: str | torch.device = "cpu",
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Turn one clip or a list of clips into log-mel windows.

        Args:
            raw_audio: A clip or a list of clips. A clip is samples (numpy array, torch tensor, list of floats;
                `[samples]`, `[channels, samples]` or `[samples, channels]`; float in [-1, 1] or int8, int16, int32,
                uint8), a dict `{"array" or "raw": samples, "sampling_rate": Hz}`, an AudioDecoder, or the path of a
                file, which soundfile decodes.
            sampling_rate: Rate of clips that do not carry their own, Hz. Never guessed.
            long_audio: Overrides the extractor's policy for this call.
            short_audio: Overrides the extractor's policy for this call.
            max_windows: Overrides the extractor's limit for this call.
            generator: Source of the crop positions of `long_audio="random"`, on the CPU.
            device: Where the log-mel is computed and returned.
            return_tensors: `"pt"` or `"np"`; None for lists with an item for each clip, as `Dataset.map` needs them.

        Returns:
            `input_features` `[clips, windows, 1, frames, mel]`, float32 dB, a row for each clip, and `num_windows`
            `[clips]`, how many windows a clip has; the rest of its row is padding. As lists: an array
            `[windows, 1, frames, mel]` and a number for each clip, which `clap_hf.MSClapDataCollator` stacks.

        Raises:
            TypeError: If a clip is not audio.
            ValueError: If a clip is empty, not finite, ambiguous in shape, or its rate is missing or impossible.
        """
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors is {return_tensors!r}, expected 'pt', 'np' or None.")
        num_windows: list[int] = []

        def windows() -> Iterator[torch.Tensor]:
            for clip_windows in self.windows(
                raw_audio,
                sampling_rate,
                long_audio=long_audio,
                short_audio=short_audio,
                max_windows=max_windows,
                generator=generator,
                device=device,
            ):
                num_windows.append(len(clip_windows))
                yield from clip_windows

        log_mels = self.log_mels(windows())[:, None]
        if return_tensors is None:
            clips = np.split(log_mels.cpu().numpy(), np.cumsum(num_windows)[:-1])
            return BatchFeature({"input_features": clips, "num_windows": num_windows})
        one_each = len(log_mels) == len(num_windows)
        features = {
            "input_features": log_mels[:, None] if one_each else pad_windows(log_mels.split(num_windows)),
            "num_windows": torch.tensor(num_windows, device=device),
        }
        if return_tensors == "np":
            return BatchFeature({name: value.cpu().numpy() for name, value in features.items()})
        return BatchFeature(features)

    def windows(
        self,
        raw_audio: Any,
        sampling_rate: int | None = None,
        *,
        long_audio: str | None = None,
        short_audio: str | None = None,
        max_windows: int | None = None,
        generator: torch.Generator | None = None,
        device: str | torch.device = "cpu",
    ) -> Iterator[list[torch.Tensor]]:
        """The first half of a call, with its arguments and errors: clips as windows at the extractor's rate.

        A clip at a time: on a CPU its log-mel follows while its samples are in the cache.

        Returns:
            The windows of every clip, `[window_samples]` each.
        """
        long_audio = self.long_audio if long_audio is None else long_audio
        short_audio = self.short_audio if short_audio is None else short_audio
        max_windows = self.max_windows if max_windows is None else max_windows
        self._check_policies(long_audio, short_audio, max_windows)
        if long_audio == "random" and generator is None:
            raise ValueError("long_audio='random' needs generator=, a seeded torch.Generator.")
        for name, clip in self._clips(raw_audio):
            samples, rate = self.read_clip(clip, sampling_rate, name)
            samples = resample(samples.to(device), rate, self.sampling_rate)
            yield self._cut(samples, long_audio, short_audio, max_windows, generator)

    @staticmethod
    def _clips(raw_audio: Any) -> Sequence[tuple[str, Any]]:
        """Name and value of every clip; a list whose first item is a number is itself one clip."""
        if not isinstance(raw_audio, (list, tuple)):
            shape = tuple(getattr(raw_audio, "shape", ()))
            if len(shape) == 2 and 1 < shape[0] <= MAX_CHANNELS and shape[0] < shape[1]:
                warnings.warn(
                    f"An array of shape {shape} is one clip of {shape[0]} channels, which are averaged. "
                    "For several clips pass list(array); for one clip [array] or a dict, without this warning.",
                    stacklevel=6,
                )
            return [("The audio", raw_audio)]
        if len(raw_audio) == 0:
            raise ValueError("The list of clips is empty, expected at least one clip.")
        if isinstance(raw_audio[0], (int, float, np.number)):
            return [("The audio", raw_audio)]
        return [(f"Clip {i} of the list", clip) for i, clip in enumerate(raw_audio)]

    @staticmethod
    def read_clip(clip: Any, sampling_rate: int | None, name: str) -> tuple[torch.Tensor, int]:
        """Mono samples of one clip and their rate, Hz."""
        if isinstance(clip, (str, os.PathLike)):
            array, own_rate = read_file(clip, name)
        elif isinstance(clip, AudioDecoderLike):
            decoded = clip.get_all_samples()
            array, own_rate = decoded.data, decoded.sample_rate
        elif isinstance(clip, dict):
            key = "raw" if "raw" in clip else "array"
            if key not in clip or clip[key] is None or "sampling_rate" not in clip:
                raise ValueError(
                    f"{name} is a dict with keys {sorted(clip)}, expected 'array' (or 'raw') and 'sampling_rate'."
                )
            array, own_rate = clip[key], clip["sampling_rate"]
        else:
            return to_mono(clip, name), check_sampling_rate(sampling_rate, name)
        own_rate = check_sampling_rate(own_rate, name)
        if sampling_rate is not None and sampling_rate != own_rate:
            raise ValueError(
                f"{name} says it is at {own_rate} Hz, but sampling_rate={sampling_rate} was passed. "
                "Leave sampling_rate out for clips that carry their own."
            )
        return to_mono(array, name), own_rate

    def _cut(
        self,
        samples: torch.Tensor,
        long_audio: str,
        short_audio: str,
        max_windows: int | None,
        generator: torch.Generator | None,
    ) -> list[torch.Tensor]:
        """Cut or fill one clip `[samples]` into windows of `window_samples`."""
        length, total = self.window_samples, samples.shape[0]
        if total == length:
            return [samples]
        if total < length:
            if short_audio == "pad":
                return [F.pad(samples, (0, length - total))]
            return [samples.repeat(math.ceil(length / total))[:length]]
        if long_audio == "random":
            starts = [int(torch.randint(0, total - length + 1, (1,), generator=generator))]
        else:
            starts = self.window_starts(total, long_audio, max_windows)
        return [samples[start : start + length] for start in starts]

    def window_starts(self, total: int, long_audio: str, max_windows: int | None) -> list[int]:
        """Where the windows start of a clip that is longer than one.

        Args:
            total: Length of the clip, samples at `sampling_rate`.
            long_audio: `"windows"` or `"center"`.
            max_windows: Windows at most; as many as cover the clip when None.

        Returns:
            First sample of every window, ascending.
        """
        self._check_policies(long_audio, self.short_audio, max_windows)
        length = self.window_samples
        count = math.ceil(total / length) if max_windows is None else min(math.ceil(total / length), max_windows)
        if long_audio == "windows" and count > 1:
            return [round(i * (total - length) / (count - 1)) for i in range(count)]
        return [(total - length) // 2]

    def log_mels(self, windows: Iterable[torch.Tensor]) -> torch.Tensor:
        """Log-mel spectrograms of windows of one length.

        On a CPU one by one: a window's frames stay in the cache. A GPU takes several in the time that one launch
        takes.

        Args:
            windows: `[samples]` each, float32 at `sampling_rate`, on one device.

        Returns:
            `[windows, 1 + samples // hop_length, mel]`, dB, on that device.
        """
        log_mels: list[torch.Tensor] = []
        waiting: list[torch.Tensor] = []
        for window in windows:
            if window.device.type == "cpu":
                log_mels.append(self.log_mel(window[None]))
                continue
            waiting.append(window)
            if len(waiting) == GPU_WINDOWS:
                log_mels.append(self.log_mel(torch.stack(waiting)))
                waiting = []
        if waiting:
            log_mels.append(self.log_mel(torch.stack(waiting)))
        return torch.cat(log_mels)

    def log_mel(self, samples: torch.Tensor) -> torch.Tensor:
        """Log-mel spectrogram: Hann window, centred frames with reflected edges, power, Slaney mel filters, dB.

        In float32 also within `torch.autocast` and whatever torch's default dtype is.

        Args:
            samples: `[samples]` or `[windows, samples]`, float32 at `sampling_rate`; any device.

        Returns:
            `[1 + samples // hop_length, mel]`, dB, floored at -100 dB; for several windows `[windows, ...]`.
        """
        with maybe_autocast(samples.device.type, enabled=False):
            window = torch.hann_window(self.n_fft, device=samples.device, dtype=torch.float32)
            rows = samples.float().view(-1, 1, samples.shape[-1])
            padded = F.pad(rows, (self.n_fft // 2, self.n_fft // 2), mode="reflect").view(*samples.shape[:-1], -1)
            bins = int(np.flatnonzero(self.mel_filters.any(axis=1))[-1]) + 1  # no filter reaches the bins above
            spectrum = torch.fft.rfft(padded.unfold(-1, self.n_fft, self.hop_length) * window)[..., :bins]
            squares = torch.view_as_real(spectrum).square()
            power = squares[..., 0] + squares[..., 1]
            mel = power @ torch.from_numpy(self.mel_filters[:bins]).to(samples.device)
            return 10.0 * torch.log10(mel.clamp(min=1e-10))


__all__ = ["MSClapFeatureExtractor"]
