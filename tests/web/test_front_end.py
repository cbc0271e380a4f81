"""The page's front end in JavaScript, run by Node: equal to Python's."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from clap_hf import MSClapProcessor, embedded_checkpoint
from clap_hf.calibration import FALSE_ALARMS, Calibration
from clap_hf.export import calibration_numbers, front_end, text_limits
from clap_hf.model.feature_extraction_msclap import MSClapFeatureExtractor, resample
from conftest import make_feature_extractor

WEB = Path(__file__).parent.parent.parent / "web"
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def node(script: str, folder: Path, **values: Any) -> Any:
    """What a script's `answer` is, as JSON; the values, and `input`: Float32Array of `input.f32`, are in its scope."""
    names = {
        "log_mel": "LogMel",
        "resample": "Resampler",
        "audio": "windowStarts, fill, statedRate, wav",
        "calibration": "Calibration",
        "vectors": "answer as named, timeline",
    }
    program = "".join(f'import {{ {name} }} from "{(WEB / file).as_uri()}.js";\n' for file, name in names.items())
    program += 'import { readFileSync, writeFileSync } from "node:fs";\n'
    program += "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    program += "const floats = (file) => new Float32Array(new Uint8Array(readFileSync(file)).buffer);\nlet answer;\n"
    path = folder / "script.mjs"
    path.write_text(f"{program}{script}\nconsole.log(JSON.stringify(answer ?? null));\n", encoding="utf-8")
    done = subprocess.run(["node", path], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)


@pytest.mark.parametrize("tiny", [True, False])
def test_log_mels(tiny, tmp_path):
    extractor = make_feature_extractor() if tiny else MSClapFeatureExtractor.from_pretrained(embedded_checkpoint())
    samples = noise(extractor.window_samples)
    samples[: len(samples) // 4] = 0  # the floor
    samples.tofile(tmp_path / "in.f32")
    script = 'writeFileSync("out.f32", new LogMel(settings).compute(floats("in.f32")));'
    node(script, tmp_path, settings=front_end(extractor))
    found = np.fromfile(tmp_path / "out.f32", np.float32).reshape(-1, extractor.feature_size)
    np.testing.assert_allclose(found, extractor.log_mel(torch.from_numpy(samples)).numpy(), atol=2e-3)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 44_056, 48_000, 96_000])
def test_resampling_by_parts(rate, tmp_path):
    samples = noise(rate // 4)
    samples.tofile(tmp_path / "in.f32")
    script = """
    const [samples, resampler] = [floats("in.f32"), new Resampler(rate, 44100)];
    const [end, middle] = [resampler.length(samples.length), 5000];
    writeFileSync("a.f32", resampler.range(samples, 0, middle));
    writeFileSync("b.f32", resampler.range(samples, middle, end));"""
    node(script, tmp_path, rate=rate)
    found = np.concatenate([np.fromfile(tmp_path / name, np.float32) for name in ("a.f32", "b.f32")])
    np.testing.assert_allclose(found, resample(torch.from_numpy(samples), rate, 44_100).numpy(), atol=2e-6)


def test_windows(tmp_path):
    extractor = make_feature_extractor()
    length = extractor.window_samples
    totals = [length + 1, 2 * length, 2 * length + 1, 7 * length + 123]
    starts = node(
        "answer = totals.map((total) => windowStarts(total, length));", tmp_path, totals=totals, length=length
    )
    for total, found in zip(totals, starts, strict=True):
        assert np.abs(np.subtract(found, extractor.window_starts(total, "windows", None))).max() <= 1  # halves
    script = 'answer = ["repeat", "pad"].map((kind) => [...fill(Float32Array.of(1, 2, 3), 7, kind)]);'
    assert node(script, tmp_path) == [[1, 2, 3, 1, 2, 3, 1], [1, 2, 3, 0, 0, 0, 0]]


def test_stated_rates(tmp_path):
    """Of the files that the browser resamples itself if they state none."""
    kinds = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")]
    kinds += [("MP3", "MPEG_LAYER_III"), ("RF64", "PCM_16")]
    rates = [8_000, 16_000, 22_050, 44_100, 48_000]
    expected = {}
    for kind, subtype in kinds:
        for rate in rates if subtype != "OPUS" else [48_000]:
            name = f"{subtype}-{rate}.{kind.lower()}"
            soundfile.write(tmp_path / name, noise(rate // 4), rate, format=kind, subtype=subtype)
            expected[name] = rate
    tagged = b"ID3\x03\x00\x00\x00\x00\x02\x01" + bytes(257) + (tmp_path / "MPEG_LAYER_III-22050.mp3").read_bytes()
    (tmp_path / "tagged.mp3").write_bytes(tagged)
    for name, content in {"empty": b"", "text": b"no sound at all", "cut": b"RIFF\x00\x00\x00\x00WAVEfmt "}.items():
        (tmp_path / name).write_bytes(content)
    names = [*expected, "tagged.mp3", "empty", "text", "cut"]
    script = "answer = names.map((name) => statedRate(new Uint8Array(readFileSync(name)).buffer) ?? null);"
    assert dict(zip(names, node(script, tmp_path, names=names), strict=True)) == {
        **expected,
        "tagged.mp3": 22_050,
        **dict.fromkeys(["empty", "text", "cut"]),
    }


def test_recordings_are_wav_files(tmp_path):
    samples = noise(1000)
    samples[0] = 2.0
    samples.tofile(tmp_path / "in.f32")
    script = 'writeFileSync("out.wav", new Uint8Array(await wav(floats("in.f32"), 16000).arrayBuffer()));'
    node(script, tmp_path)
    found, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(found, np.clip(samples, -1, 1), atol=1e-4)


def test_limits_of_texts(tokenizer):
    for each in (tokenizer, MSClapProcessor.from_pretrained(embedded_checkpoint()).tokenizer):
        limits = text_limits(each)
        long = each("word " * 200, truncation=True)["input_ids"]
        assert limits["end_ids"] and long[-len(limits["end_ids"]) :] == limits["end_ids"]
        assert len(long) == limits["max_tokens"]


def test_other_transforms_are_refused():
    extractor = MSClapFeatureExtractor(n_fft=1000)
    with pytest.raises(ValueError, match="n_fft is 1000, expected a power of two"):
        front_end(extractor)


def test_calibrated_answers(tmp_path):
    calibration = Calibration.load(embedded_checkpoint() / "calibration.safetensors")
    rng = np.random.default_rng(0)
    shape = (5, calibration.sounds.shape[1])
    audio = calibration.sounds[:5] + rng.normal(0, 0.02, shape).astype(np.float32)
    text = calibration.texts[:5] + rng.normal(0, 0.02, shape).astype(np.float32)
    audio, text = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (audio, text))
    np.concatenate([calibration.sounds, calibration.texts]).astype("<f4").tofile(tmp_path / "background.f32")
    np.concatenate([audio, text]).tofile(tmp_path / "in.f32")
    script = """
    const known = new Calibration(facts, floats("background.f32"));
    const all = floats("in.f32");
    const rows = Array.from({ length: 10 }, (_, i) => all.subarray(i * size, (i + 1) * size));
    const [sounds, texts] = [rows.slice(0, 5), rows.slice(5)];
    const long = { vectors: sounds, starts: [0, 1, 2, 3, 4], seconds: 5 };
    answer = {
      probabilities: sounds.map((sound) => texts.map((text) => known.probability(sound, text))),
      thresholds: [1, 2, 10, 45, 200, 100000].map((count) => known.threshold(count)),
      labels: sounds.map((sound) => named(sound, texts, scale, known).label),
      plain: sounds.map((sound) => named(sound, texts, scale).label),
      timeline: timeline(long, texts, scale, known),
    };"""
    found = node(script, tmp_path, facts=calibration_numbers(calibration), size=shape[1], scale=40.0)
    expected = calibration.probabilities(audio, text)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-4)
    counts = (1, 2, 10, 45, 200, 100_000)
    np.testing.assert_allclose(
        found["thresholds"], [calibration.threshold(FALSE_ALARMS, n) for n in counts], rtol=1e-6
    )
    best = (audio @ text.T).argmax(axis=1)
    certain = expected[range(5), best] >= calibration.threshold(FALSE_ALARMS, 5)
    assert found["plain"] == best.tolist() and found["labels"] == np.where(certain, best, -1).tolist()
    assert -1 in found["labels"] and [run["label"] for run in found["timeline"]] == [
        label for i, label in enumerate(found["labels"]) if not i or label != found["labels"][i - 1]
    ]
