"""The front end, and every defect of other CLAP front ends that it must not have."""

from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import soundfile
import torch
from torchlibrosa.stft import LogmelFilterBank, Spectrogram
from transformers import AutoFeatureExtractor

from clap_hf import MSClapFeatureExtractor, load_audio
from clap_hf._torchaudio import torchaudio
from clap_hf.model import feature_extraction_msclap
from clap_hf.model.feature_extraction_msclap import resample
from conftest import EXAMPLES, make_feature_extractor, sound

FLOOR_DB = -100.0


@pytest.fixture(scope="module")
def extract():
    return make_feature_extractor()


def features(extract, audio, rate=16_000, **options):
    return extract(audio, rate, **options)["input_features"]


# The spectrogram


def test_shapes_of_the_released_settings():
    released = MSClapFeatureExtractor()
    out = released(sound(2, 44_100), 44_100)
    assert out["input_features"].shape == (1, 1, 1, 965, 64) and out["input_features"].dtype == torch.float32
    assert out["num_windows"].tolist() == [1]
    assert MSClapFeatureExtractor(duration_s=5.0)(sound(2, 44_100), 44_100)["input_features"].shape[3] == 690


@pytest.mark.parametrize("mel_rate, fmin, fmax", [(None, 50.0, 8_000.0), (32_000, 50.0, 14_000.0)])
def test_log_mel_equals_torchlibrosa(mel_rate, fmin, fmax):
    """2023 as the YAML says, and as the released code builds it: filters for 32 kHz fed with 44.1 kHz."""
    audio = load_audio(EXAMPLES / "fire.ogg")
    samples = torch.from_numpy(audio.samples[0])
    ours = MSClapFeatureExtractor(mel_sampling_rate=mel_rate, fmin=fmin, fmax=fmax).log_mel(samples)
    spectrogram = Spectrogram(n_fft=1024, hop_length=320, freeze_parameters=True)
    log_mel = LogmelFilterBank(
        sr=mel_rate or 44_100, n_fft=1024, n_mels=64, fmin=fmin, fmax=fmax, amin=1e-10, top_db=None
    )
    reference = log_mel(spectrogram(samples[None]))[0, 0]
    difference = (ours - reference).abs()
    # dB; below -70 dB the reference's convolutions are down to the rounding noise of the loud bins.
    assert difference[reference > -70].max() < 1e-3 and difference.max() < 0.05


@pytest.mark.parametrize("rate, mel, n_fft, fmax", [(44_100, 64, 1024, 8_000), (32_000, 64, 1024, 14_000)])
def test_filters_equal_librosa(rate, mel, n_fft, fmax):
    ours = MSClapFeatureExtractor(mel_sampling_rate=rate, fmin=50, fmax=fmax).mel_filters
    reference = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=mel, fmin=50, fmax=fmax).T
    np.testing.assert_allclose(ours, reference, atol=1e-7)


def test_several_windows_at_once_are_the_same_as_one_by_one(extract):
    first, second = extract.windows([sound(0.4, 16_000), sound(2.6, 16_000)], 16_000)
    assert len(first) == 1 and len(second) > 1
    windows = first + second
    together, alone = extract.log_mel(torch.stack(windows)), extract.log_mels(windows)
    assert together.shape == alone.shape
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)  # dB
    called = extract([sound(0.4, 16_000), sound(2.6, 16_000)], 16_000)
    assert called["num_windows"].tolist() == [1, len(second)]
    assert torch.equal(called["input_features"][0, 0, 0], alone[0])
    assert torch.equal(called["input_features"][1, :, 0], alone[1:]) and not called["input_features"][0, 1:].any()


def test_silence_is_the_floor(extract):
    assert (features(extract, np.zeros(16_000, np.float32)) == FLOOR_DB).all()


# Resampling


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 48_000, 96_000])
def test_resample_equals_torchaudio(rate):
    samples = torch.from_numpy(sound(0.7, rate))
    reference = torchaudio.functional.resample(samples, rate, 44_100)
    ours = resample(samples, rate, 44_100)
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() < 1e-4


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_both_forms_of_the_resampler_agree(rate, monkeypatch):
    samples = torch.from_numpy(sound(0.7, rate))
    convolved = resample(samples, rate, 44_100)
    monkeypatch.setattr(feature_extraction_msclap, "MAX_CONVOLUTION", 0)
    assert (resample(samples, rate, 44_100) - convolved).abs().max() < 1e-5


def test_resampling_from_a_rate_with_few_common_divisors():
    """44,056 Hz (NTSC) would need 2 GB of mostly zero kernels; a tone must come out as that tone."""
    time = np.arange(44_056) / 44_056
    tone = resample(torch.from_numpy(np.sin(2 * np.pi * 1_000 * time).astype(np.float32)), 44_056, 44_100)
    expected = torch.sin(2 * np.pi * 1_000 * torch.arange(44_100, dtype=torch.float64) / 44_100).float()
    assert tone.shape == (44_100,)
    assert (tone - expected)[100:-100].abs().max() < 2e-3


def test_the_stated_rate_decides(extract):
    """A recording at two rates gives nearly the same features, and another than the same samples misread."""
    high, low = sound(0.9, 48_000), resample(torch.from_numpy(sound(0.9, 48_000)), 48_000, 16_000)
    right = (features(extract, high, 48_000) - features(extract, low, 16_000)).abs().mean()
    wrong = (features(extract, high, 16_000) - features(extract, low, 16_000)).abs().mean()
    assert right < 0.1 < 5 < wrong


# Kinds of input


def test_kinds_of_one_clip_agree(extract):
    mono = sound(0.8)
    expected = features(extract, mono)
    decoder = SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(mono)[None], sample_rate=16_000)
    )
    own_rate = [{"array": mono, "sampling_rate": 16_000}, {"raw": mono, "sampling_rate": 16_000}, decoder]
    for clip in own_rate:
        torch.testing.assert_close(extract(clip)["input_features"], expected, rtol=0, atol=0)
    for clip in (
        torch.from_numpy(mono),
        mono.astype(np.float64),
        mono.tolist(),
        mono.astype(">f4"),
        np.frombuffer(mono.tobytes(), np.float32),  # read-only
        np.repeat(mono, 2)[::2],  # strided
        [mono],
        (mono,),
    ):
        torch.testing.assert_close(features(extract, clip), expected, rtol=0, atol=1e-6)
    assert isinstance(features(extract, mono, return_tensors="np"), np.ndarray)


def test_a_real_audio_decoder(extract):
    decoders = pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))
    out = extract(decoders.AudioDecoder(str(EXAMPLES / "piano.flac")))
    audio = load_audio(EXAMPLES / "piano.flac")
    torch.testing.assert_close(out["input_features"], features(extract, audio.samples, audio.sampling_rate))


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_do_not_warn(extract):
    features(extract, np.frombuffer(sound(0.5).tobytes(), np.float32))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_stereo_is_one_clip_and_the_mean_of_its_channels(extract, kind):
    left, right = sound(0.8, seed=1), sound(0.8, seed=2)
    expected = features(extract, (left + right) / 2)
    for stereo in (np.stack([left, right]), np.stack([left, right], axis=1)):
        out = extract(kind(stereo), 16_000)
        assert out["num_windows"].tolist() == [1]
        torch.testing.assert_close(out["input_features"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, -1), (-1, 1)])
def test_one_channel_in_two_dimensions(extract, shape):
    clip = torch.from_numpy(sound(3.0)).reshape(shape)
    torch.testing.assert_close(features(extract, clip), features(extract, sound(3.0)), rtol=0, atol=0)
    assert extract([clip, clip], 16_000)["num_windows"].tolist() == [3, 3]


@pytest.mark.parametrize("shape", [(2, 2), (40, 40), (40, 50), (2, 3, 100), (1, 1, 100)])
def test_ambiguous_shapes_are_errors(extract, shape):
    with pytest.raises(ValueError, match=r"has shape .*pass several clips as a list|Pass several clips as a list"):
        extract(np.zeros(shape, np.float32), 16_000)


@pytest.mark.parametrize(
    "dtype, scale, zero", [("int8", 2**7, 0), ("int16", 2**15, 0), ("int32", 2**31, 0), ("uint8", 2**7, 128)]
)
def test_integer_samples_are_scaled_by_their_type(extract, dtype, scale, zero):
    integers = (np.round(sound(0.6).astype(np.float64) * 0.9 * scale) + zero).astype(dtype)
    floats = ((integers.astype(np.float64) - zero) / scale).astype(np.float32)
    torch.testing.assert_close(features(extract, integers), features(extract, floats), rtol=0, atol=1e-3)


def test_unscaled_floats_are_an_error(extract):
    with pytest.raises(ValueError, match="Divide 16-bit values by 32,768"):
        extract(sound(0.5) * 32_768, 16_000)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_an_error_that_names_the_clip(extract, bad):
    clip = sound(0.5)
    clip[7] = bad
    with pytest.raises(ValueError, match="Clip 1 of the list holds NaN or infinite"):
        extract([sound(0.5), clip], 16_000)


@pytest.mark.parametrize("empty", [np.zeros(0, np.float32), torch.zeros(2, 0), []])
def test_empty_is_an_error(extract, empty):
    with pytest.raises(ValueError, match="empty"):
        extract(empty, 16_000)
    with pytest.raises(ValueError, match="empty"):
        extract([sound(0.5), np.zeros(0, np.float32)], 16_000)


@pytest.mark.parametrize("not_audio", [None, np.array(["a"]), np.zeros(9, np.complex64), np.zeros(9, bool)])
def test_what_is_not_audio_is_an_error(extract, not_audio):
    with pytest.raises(TypeError, match="expected"):
        extract(not_audio, 16_000)


def test_files_are_read(extract, tmp_path):
    clip = sound(0.8)
    soundfile.write(tmp_path / "clip.wav", clip, 16_000, subtype="FLOAT")
    for path in (tmp_path / "clip.wav", str(tmp_path / "clip.wav")):
        assert torch.equal(features(extract, path, None), features(extract, clip))
    (tmp_path / "text.wav").write_text("no sound")
    for path, words in ((tmp_path / "none.wav", "none.wav"), (tmp_path / "text.wav", "text.wav")):
        with pytest.raises(ValueError, match=f"{words}.*Expected a sound file"):
            extract([path])
    with pytest.raises(ValueError, match="is the URL .*nothing is fetched"):
        extract("https://example.com/dog.wav")


def test_missing_rate_is_an_error(extract):
    with pytest.raises(ValueError, match="has no sampling rate"):
        extract(sound(0.5))
    with pytest.raises(ValueError, match="Clip 1 of the list has no sampling rate"):
        extract([{"array": sound(0.5), "sampling_rate": 16_000}, sound(0.5)])
    with pytest.raises(ValueError, match="has no sampling rate"):
        extract({"array": sound(0.5), "sampling_rate": None})


@pytest.mark.parametrize("rate", [0, -16_000, 16, 5_000_000, float("nan"), "16000", True, 16_000.5])
def test_impossible_rates_are_errors(extract, rate):
    with pytest.raises(ValueError, match="has sampling rate"):
        extract(sound(0.5), rate)


def test_contradicting_rates_are_an_error(extract):
    with pytest.raises(ValueError, match="at 8000 Hz, but sampling_rate=16000"):
        extract({"array": sound(0.5), "sampling_rate": 8_000}, 16_000)


def test_incomplete_dicts_are_errors(extract):
    for clip in ({"array": sound(0.5)}, {"sampling_rate": 16_000}, {"array": None, "sampling_rate": 16_000}):
        with pytest.raises(ValueError, match="expected 'array'"):
            extract(clip)


@pytest.mark.parametrize("keyword", [{"padding": "bogus"}, {"max_length_s": 7}, {"truncation": True}])
def test_unknown_keywords_are_errors(extract, keyword):
    with pytest.raises(TypeError, match=next(iter(keyword))):
        extract(sound(0.5), 16_000, **keyword)
    with pytest.raises(TypeError, match=next(iter(keyword))):
        MSClapFeatureExtractor(**keyword)


@pytest.mark.parametrize("keyword", [{"long_audio": "rand_trunc"}, {"short_audio": "repeatpad"}])
def test_unknown_policies_are_errors(extract, keyword):
    with pytest.raises(ValueError, match="expected one of"):
        extract(sound(0.5), 16_000, **keyword)
    with pytest.raises(ValueError, match="expected one of"):
        MSClapFeatureExtractor(**keyword)


def test_device_is_where_features_are_made(extract):
    out = extract([sound(0.5), sound(2.5, 44_100)[: 16_000 * 2]], 44_100, device="meta")
    assert out["input_features"].device.type == "meta" and out["num_windows"].device.type == "meta"


# Long and short clips


@pytest.mark.parametrize("seconds", [1.0001, 2.0, 2.5, 7.3])
def test_windows_cover_the_whole_clip(extract, seconds):
    total = round(seconds * 16_000)
    for position in (0, total // 3, total // 2, total - 1):
        clip = np.zeros(total, np.float32)
        clip[position] = 1.0
        out = extract(clip, 16_000)
        assert out["num_windows"].tolist() == [np.ceil(seconds)]
        assert (out["input_features"] > FLOOR_DB).any(), f"no window heard sample {position}"


def test_windows_are_consecutive_clips(extract):
    clips = [sound(0.5, seed=1), sound(2.2, seed=2), sound(1.0, seed=3)]
    together = extract(clips, 16_000)
    assert together["num_windows"].tolist() == [1, 3, 1]
    assert together["input_features"].shape[:2] == (3, 3)
    for row, clip, count in zip(together["input_features"], clips, [1, 3, 1], strict=True):
        torch.testing.assert_close(row[:count], features(extract, clip)[0], rtol=0, atol=0)


def test_center_keeps_the_middle(extract):
    clip = sound(3.0)
    out = features(extract, clip, long_audio="center")
    torch.testing.assert_close(out, features(extract, clip[16_000:32_000]), rtol=0, atol=0)


def test_random_needs_a_generator_and_repeats_with_it(extract):
    clip = sound(5.0)
    with pytest.raises(ValueError, match="needs generator="):
        extract(clip, 16_000, long_audio="random")
    crops = [
        features(extract, clip, long_audio="random", generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(crops[0], crops[1]) and not torch.equal(crops[0], crops[2])
    generator = torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    two = [features(extract, clip, long_audio="random", generator=generator) for _ in range(2)]
    assert not torch.equal(*two)
    assert torch.equal(state, torch.get_rng_state()), "the global random state moved"


def test_random_crops_reach_both_ends(extract):
    """The first and the last possible position both come up: the bound is inclusive."""
    clip = np.zeros(16_002, np.float32)
    clip[0] = clip[-1] = 1.0
    generator = torch.Generator().manual_seed(0)
    crops = [features(extract, clip, long_audio="random", generator=generator)[0, 0, 0] for _ in range(40)]
    heard = {((crop[0] > FLOOR_DB).any().item(), (crop[-1] > FLOOR_DB).any().item()) for crop in crops}
    assert {(True, False), (False, True)} <= heard


def test_short_clips_repeat_or_pad(extract):
    clip = sound(0.4)
    torch.testing.assert_close(features(extract, clip), features(extract, np.tile(clip, 3)[:16_000]), rtol=0, atol=0)
    padded = np.concatenate([clip, np.zeros(16_000 - clip.size, np.float32)])
    torch.testing.assert_close(features(extract, clip, short_audio="pad"), features(extract, padded), rtol=0, atol=0)
    assert features(extract, clip[:1]).isfinite().all()


# Determinism


def test_repeats_are_equal_bit_for_bit(extract):
    clips = [sound(0.5), sound(4.2, 44_100)]
    first = extract(clips, 44_100)["input_features"]
    for _ in range(3):
        assert torch.equal(extract(clips, 44_100)["input_features"], first)


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_a_clip_does_not_depend_on_its_batch(extract, size):
    clips = [sound(0.3 + 0.09 * i, seed=i) for i in range(size)]
    together = extract(clips, 16_000)
    for row, clip, count in zip(together["input_features"], clips, together["num_windows"], strict=True):
        torch.testing.assert_close(row[:count], features(extract, clip)[0], rtol=0, atol=1e-5)


def test_round_trip(tmp_path):
    extract = MSClapFeatureExtractor(duration_s=5.0, mel_sampling_rate=32_000, fmax=14_000.0, long_audio="center")
    extract.save_pretrained(tmp_path)
    reloaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(reloaded) is MSClapFeatureExtractor and reloaded.to_dict() == extract.to_dict()
    clip = sound(6.0, 44_100)
    assert torch.equal(reloaded(clip, 44_100)["input_features"], extract(clip, 44_100)["input_features"])
