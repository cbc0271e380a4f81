"""Parity with PyPI `msclap`: the same official file through both, on real recordings and varied captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import soundfile
import soxr
import torch
import torch.nn.functional as F
from torch import nn
from torchaudio.transforms import Resample

from clap_hf import MSClapModel, MSClapProcessor, load_audio, load_msclap_checkpoint
from clap_hf.model.feature_extraction_msclap import resample
from msclap_reference import (
    EXAMPLES,
    TOKENIZER,
    load_with_soundfile,
    official_state,
    random_clap,
    reference_wrapper,
)

RATES = (8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000)  # Hz
ODD_CAPTIONS = (
    "",
    "a",
    "DOG BARKING LOUDLY",
    "dog barking ",
    "  two   spaces and\ta tab",
    "first line\nsecond line",
    "this is a sound of rain.",
    "440 Hz sine wave, -12.5 dB, 2.75 s @ 44.1 kHz",
    "a café's naïve jukebox – “déjà vu”",
    "雨の音と遠くの雷",
    "птицы поют на рассвете",
    "🎵 music 🎻 with emoji",
    "what is that? a helicopter? no; a lawn mower (far away)",
    "http://example.org/sounds/dog_bark-01.wav",
    "woof " * 12,
    "antidisestablishmentarianism",
    "'quoted' \"twice\" [bracketed] {braced} <tagged>",
    "nothing but silence, then more silence, and at the very end of a long recording made on a wet night in a narrow "
    "street one single car door that slams shut",
    "A man speaks while a crowd applauds and whistles; he pauses, laughs and speaks again, and an organ plays.",
    "100% rain & thunder #storm",
)
SOUNDS = (
    "a dog",
    "heavy rain",
    "an acoustic guitar",
    "church bells",
    "a steam train",
    "children playing",
    "a chainsaw",
    "breaking glass",
    "a snare drum",
    "a stream",
)
TEMPLATES = (
    "{}",
    "this is a sound of {}",
    "The recording features {} in the distance.",
    "{}, then {} and wind",
    "I can hear {} very clearly, close to the microphone, for about five seconds",
    "no {}",
    "field recording, {}, early morning, 1998",
    "{} {} {}",
)
CAPTIONS = ODD_CAPTIONS + tuple(template.replace("{}", sound) for template in TEMPLATES for sound in SOUNDS)


@dataclass
class Pair:
    """One official checkpoint in both implementations."""

    version: str
    wrapper: Any  # msclap.CLAPWrapper
    model: MSClapModel
    processor: MSClapProcessor
    window_s: int

    @property
    def front_end(self) -> nn.Module:
        """The reference tower, which holds its log-mel layers."""
        base = self.wrapper.clap.audio_encoder.base
        return base.htsat if self.version == "2023" else base


@dataclass
class Compared:
    """What both make of the same recordings and captions."""

    mel: torch.Tensor  # [recordings, frames, mel], dB
    reference_mel: torch.Tensor
    audio: torch.Tensor  # unit vectors [recordings, 1024]
    reference_audio: torch.Tensor
    text: torch.Tensor  # unit vectors [captions, 1024]
    reference_text: torch.Tensor
    logits: torch.Tensor  # [recordings, captions]
    reference_logits: torch.Tensor


@pytest.fixture(scope="module", params=["2023", "2022"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Full-size random weights in the file format of the published checkpoints, converted, and loaded by msclap."""
    version = request.param
    path = tmp_path_factory.mktemp("official") / f"CLAP_weights_{version}.pth"
    torch.save({"model": official_state(random_clap(version, seed=2023), version, "hub")}, path)
    wrapper = reference_wrapper(path, version)
    yield Pair(version, wrapper, *load_msclap_checkpoint(path, version, TOKENIZER[version]), wrapper.args.duration)
    path.unlink()


@pytest.fixture(scope="module")
def recordings(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Real recordings of many rates, lengths and channel counts, none longer than a window.

    The second path is what the reference reads: the same file, or the mean of its channels where there are several
    (the reference lays channels end to end).
    """
    folder = tmp_path_factory.mktemp("recordings")
    found = []
    for i, path in enumerate(sorted(path for path in EXAMPLES.iterdir() if path.suffix not in (".md", ".csv"))):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        middle = samples[len(samples) // 4 :][: int((0.4 + 0.37 * i) * rate)][: pair.window_s * rate]
        other_rate = RATES[i % len(RATES)]
        cuts = {rate: samples[: pair.window_s * rate], other_rate: soxr.resample(middle, rate, other_rate)}
        for j, (new_rate, cut) in enumerate(cuts.items()):
            target = folder / f"{path.stem}-{j}.wav"
            soundfile.write(target, cut, new_rate, subtype="FLOAT" if cut.shape[1] > 1 else "PCM_16")
            reference = target
            if cut.shape[1] > 1:
                reference = target.with_suffix(".mono.wav")
                soundfile.write(reference, load_with_soundfile(target)[0].mean(dim=0).numpy(), new_rate, "FLOAT")
            found.append((target, reference))
    return found


@pytest.fixture(scope="module")
@torch.no_grad()
def compared(pair: Pair, recordings: list[tuple[Path, Path]]) -> Compared:
    wrapper, references = pair.wrapper, [reference for _, reference in recordings]
    sounds = [load_audio(path) for path, _ in recordings]
    clips = [{"array": sound.samples, "sampling_rate": sound.sampling_rate} for sound in sounds]
    features = pair.processor(text=list(CAPTIONS), audio=clips)
    outputs = pair.model(**features)

    waveforms = wrapper.preprocess_audio(references, resample=True)[:, 0]
    # One by one and in small batches: msclap's front end and padded texts take gigabytes otherwise.
    mel = [pair.front_end.logmel_extractor(pair.front_end.spectrogram_extractor(wave[None]))[0] for wave in waveforms]
    audio = torch.cat([wrapper.get_audio_embeddings([reference]) for reference in references])
    text = torch.cat([wrapper.get_text_embeddings(CAPTIONS[i : i + 20]) for i in range(0, 100, 20)])
    return Compared(
        mel=features["input_features"][:, 0, 0],
        reference_mel=torch.cat(mel),
        audio=outputs.audio_embeds,
        reference_audio=F.normalize(audio, dim=-1),
        text=outputs.text_embeds,
        reference_text=F.normalize(text, dim=-1),
        logits=outputs.logits_per_audio,
        reference_logits=wrapper.compute_similarity(audio, text),
    )


def largest(
    own: torch.Tensor, reference: torch.Tensor, name: str, record_property: Callable[[str, object], None]
) -> float:
    difference = float((own - reference).abs().max())
    record_property(name, difference)
    print(f"{name}: {difference:.2e}")
    return difference


def unlike(vectors: torch.Tensor) -> bool:
    """Whether unit vectors differ so much that agreement on them means something."""
    cosines = vectors @ vectors.t()
    return float((cosines.sum() - cosines.trace()) / (len(cosines) * (len(cosines) - 1))) < 0.95


def test_recordings_are_varied(pair: Pair, recordings: list[tuple[Path, Path]]) -> None:
    files = [soundfile.info(path) for path, _ in recordings]
    assert len(files) >= 20
    assert len({file.samplerate for file in files}) >= 7
    assert {file.channels for file in files} == {1, 2}
    assert min(file.duration for file in files) < 0.6
    assert max(file.duration for file in files) == pair.window_s


def test_log_mel(compared: Compared, record_property: Callable[[str, object], None]) -> None:
    """In float32 the quietest bins of a frame are rounding noise, in both: power is compared with the frame's peak."""
    own, reference = compared.mel, compared.reference_mel
    peak = reference.amax(dim=2, keepdim=True)
    loud = reference > peak - 40
    assert loud.float().mean() > 0.4
    assert largest(own[loud], reference[loud], "log-mel within 40 dB of the frame's peak, dB", record_property) <= 3e-3
    assert (own - reference).abs().mean() <= 1e-3
    power, reference_power = 10 ** ((own - peak) / 10), 10 ** ((reference - peak) / 10)
    assert largest(power, reference_power, "mel power over the frame's peak", record_property) <= 3e-5


def test_audio_embeddings(compared: Compared, record_property: Callable[[str, object], None]) -> None:
    assert unlike(compared.audio)
    assert largest(compared.audio, compared.reference_audio, "audio embeddings", record_property) <= 1e-4


def test_text_embeddings(compared: Compared, record_property: Callable[[str, object], None]) -> None:
    assert len(set(CAPTIONS)) == 100
    assert unlike(compared.text)
    assert largest(compared.text, compared.reference_text, "text embeddings", record_property) <= 1e-4


def test_similarities(compared: Compared, record_property: Callable[[str, object], None]) -> None:
    largest_logit = compared.reference_logits.abs().max()
    difference = largest(
        compared.logits / largest_logit,
        compared.reference_logits / largest_logit,
        "similarities, relative",
        record_property,
    )
    assert difference <= 1e-3


@torch.no_grad()
def test_long_recording_is_the_mean_of_reference_windows(
    pair: Pair, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """msclap crops at random; what we do instead is its embedding of every window, averaged."""
    sound = load_audio(EXAMPLES / "thunder.ogg")
    samples = torch.from_numpy(sound.samples).mean(dim=0)
    length = pair.window_s * 44_100
    windows = []
    for i, start in enumerate((0, len(samples) - length)):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, samples[start : start + length].numpy(), 44_100, subtype="FLOAT")
        windows.append(F.normalize(pair.wrapper.get_audio_embeddings([path]), dim=-1))
    reference = F.normalize(torch.cat(windows).mean(dim=0, keepdim=True), dim=-1)
    clip = {"array": sound.samples, "sampling_rate": sound.sampling_rate}
    own = pair.model.get_audio_features(**pair.processor(audio=clip)).pooler_output
    assert largest(own, reference, "windows of a long recording", record_property) <= 1e-4


@torch.no_grad()
def test_exclamation_marks_move_the_reference_off_the_end_token(pair: Pair) -> None:
    """msclap pads with "!" (id 0) and pools at the count of other ids: every "!" of a text moves it one token back."""
    wrapper, model = pair.wrapper, pair.model
    for text, marks in (("a dog barks!", 1), ("stop! thief! run!", 3)):
        reference = F.normalize(wrapper.get_text_embeddings([text]), dim=-1)
        tokens = pair.processor(text=text)
        own = model.get_text_features(**tokens)
        if pair.version == "2022":  # BERT is pooled at its first token
            torch.testing.assert_close(own.pooler_output, reference, atol=1e-4, rtol=0)
            continue
        assert float(own.pooler_output @ reference.t()) < 0.99

        # Our states, pooled where msclap pools, give msclap's vector ...
        end = tokens["input_ids"].shape[1] - 1
        assert int((tokens["input_ids"] != 0).sum()) - 1 == end - marks
        moved = F.normalize(model.text_projection(own.last_hidden_state[:, end - marks]), dim=-1)
        torch.testing.assert_close(moved, reference, atol=1e-4, rtol=0)

        # ... and msclap's states, pooled at the end token, give ours.
        encoder = wrapper.clap.caption_encoder
        states = encoder.base(**{key: wrapper.preprocess_text([text])[key] for key in wrapper.token_keys})[0]
        repaired = F.normalize(encoder.projection(states[:, end]), dim=-1)
        torch.testing.assert_close(repaired, own.pooler_output, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate != 44_100])
def test_resampling_equals_torchaudio(rate: int, record_property: Callable[[str, object], None]) -> None:
    """torchaudio rounds the phases of its kernels to float32 unless its transform is told otherwise."""
    samples = load_with_soundfile(EXAMPLES / "speech.wav")[0][0, :20_011]
    for source, target in ((rate, 44_100), (44_100, rate)):
        own = resample(samples, source, target)
        exact = Resample(source, target, dtype=torch.float64)(samples.double())
        assert own.shape == exact.shape
        name = f"resampling {source} to {target} Hz"
        assert largest(own, exact, name, record_property) <= 1e-6
        rounded = Resample(source, target)(samples)  # as msclap resamples
        assert largest(own, rounded, f"{name}, float32 phases", record_property) <= 1e-5
