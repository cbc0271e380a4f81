"""Training clips that hold a sealed recording in another cut, found by their waveforms."""

import io
import json

import numpy as np
import soundfile
import typer
from datasets import Audio, Dataset
from tools.release import sealed_copies
from typer.testing import CliRunner

from clap_hf import load_audio
from training.corpus import EXAMPLES


def stored(samples, rate, format):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format)
    return {"bytes": buffer.getvalue(), "path": None}


def write_split(folder, split, rows):
    (folder / "data").mkdir(parents=True)
    rows = [{"id": name, "label": label, "audio": audio} for name, label, audio in rows]
    made = Dataset.from_list(rows).cast_column("audio", Audio(decode=False))
    made.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_another_cut_of_a_sealed_recording_is_found_and_another_recording_is_not(tmp_path):
    thunder, stream = (load_audio(EXAMPLES / f"{name}.ogg") for name in ("thunder", "stream"))
    rate, samples = thunder.sampling_rate, thunder.samples.mean(axis=0)
    flowing = stream.samples.mean(axis=0)
    sealed = write_split(
        tmp_path / "sealed",
        "sealed",
        [
            ("storm", "thunder", stored(samples[: 4 * rate], rate, "OGG")),
            ("brook", "stream", stored(flowing[: 3 * stream.sampling_rate], stream.sampling_rate, "FLAC")),
        ],
    )
    noise = np.random.default_rng(0).standard_normal(3 * rate).astype(np.float32) / 10
    training = write_split(
        tmp_path / "training",
        "train",
        [
            ("noise", "thunder", stored(noise, rate, "FLAC")),
            ("later", "thunder", stored(samples[int(2.6 * rate) : int(6.6 * rate)] / 3, rate, "MP3")),  # 1.4 of 4 s
            ("elsewhere", "stream", stored(flowing[int(3.2 * stream.sampling_rate) :], stream.sampling_rate, "FLAC")),
        ],
    )
    made = typer.Typer()
    made.command()(sealed_copies.main)
    options = ["--sealed", str(sealed), "--training", str(training), "--output", str(tmp_path / "copies.json")]
    result = CliRunner().invoke(made, options)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "copies.json").read_text())
    assert found["sealed_clips"] == 2 and found["training_clips"] == 3 and found["compared"] >= 3
    (pair,) = found["pairs"]
    assert (pair["training"], pair["sealed"]) == ("later", "storm") and pair["correlation"] > 0.9
    result = CliRunner().invoke(made, [*options, "--nearest", "1"])
    assert result.exit_code == 0, result.output
    nearest = json.loads((tmp_path / "copies.json").read_text())
    assert nearest["compared"] == 2 and nearest["pairs"] == found["pairs"]
