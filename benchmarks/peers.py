"""What is compared: this package and PyPI `msclap` with the same weights, and transformers' LAION CLAP.

Weights are random and seeded, at full size, in the official file's format: speed does not depend on what they say.
"""

from __future__ import annotations

import clap_hf  # first: it makes a torchaudio built for another torch importable, which transformers asks for

# isort: split

import copy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedModel

from clap_hf.fast_cpu import optimize_if_possible

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from msclap_reference import TOKENIZER, official_state, random_clap, reference_wrapper  # noqa: E402

SEED = 2023
RATE, WINDOW_S = 44_100, 7.0  # Hz and s, of the 2023 model
LAION_RATE, LAION_S = 48_000, 10.0
# Mono and at most 7 s long: longer ones msclap crops at random, and stereo it lays end to end.
RECORDINGS = (
    "bird.wav",
    "chainsaw.flac",
    "fire.ogg",
    "glass_break.ogg",
    "sheep.wav",
    "snare_drum.flac",
    "speech.wav",
    "steam_train.flac",
    "stream.ogg",
    "dog.ogg",
)


@dataclass
class Peers:
    """The models, in evaluation mode: ours by the fast path and as plain PyTorch, with the same weights."""

    model: clap_hf.MSClapModel
    plain: clap_hf.MSClapModel
    processor: clap_hf.MSClapProcessor
    msclap: Any
    laion: ClapModel
    laion_extractor: ClapFeatureExtractor

    def embed(self, model: Any, clips: torch.Tensor) -> torch.Tensor:
        """Embeddings of waveforms `[clips, samples]` by one of our models, front end included, on their device."""
        features = self.processor.feature_extractor(list(clips), RATE, device=clips.device)
        return model.get_audio_features(**features).pooler_output

    def gflop_per_clip(self) -> float:
        """GFLOP of one clip of 7 s, of its matrix products, from waveform to embedding; with the model on the CPU."""
        # With gradient: what computes without it, linear layers and attention at once, is not counted.
        with torch.inference_mode(False), torch.enable_grad(), FlopCounterMode(display=False) as counter:
            self.embed(self.model, waveforms(1, WINDOW_S, RATE))
        return counter.get_total_flops() / 1e9


def build() -> Peers:
    """All models, ours and msclap's from one file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "CLAP_weights_2023.pth"
        torch.save({"model": official_state(random_clap("2023", SEED), "2023", "current")}, path)
        msclap = reference_wrapper(path, "2023")
        model, processor = clap_hf.load_msclap_checkpoint(path, "2023", TOKENIZER["2023"])
    torch.manual_seed(SEED)
    laion = ClapModel(ClapConfig()).eval()
    plain = model.eval()
    fast = clap_hf.optimize_for_cpu(copy.deepcopy(plain))
    return Peers(fast, plain, processor, msclap, laion, ClapFeatureExtractor(truncation="rand_trunc"))


def in_bfloat16(model: PreTrainedModel) -> Any:
    """A model as `from_pretrained(..., dtype=torch.bfloat16)` gives it, by the fast path where it is on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return optimize_if_possible(type(model).from_pretrained(folder, dtype=torch.bfloat16).eval())


def waveforms(clips: int, seconds: float, rate: int) -> torch.Tensor:
    """Recordings of `examples/`, repeated to length, in turn; `[clips, samples]`."""
    length = round(seconds * rate)
    found = []
    for name in RECORDINGS:
        samples, _ = soundfile.read(ROOT / "examples" / name, dtype="float32", always_2d=True)
        clip = torch.from_numpy(samples[:, 0].copy())
        found.append(clip.repeat(length // len(clip) + 1)[:length])
    return torch.stack([found[i % len(found)] for i in range(clips)])


def write_files(folder: Path, count: int) -> list[Path]:
    """Recordings as WAV, FLAC and MP3 files in turn, at their own rates or the next that MP3 has."""
    files = []
    for i in range(count):
        samples, rate = soundfile.read(ROOT / "examples" / RECORDINGS[i % len(RECORDINGS)], dtype="float32")
        extension = (".wav", ".flac", ".mp3")[i % 3]
        files.append(folder / f"{i:03d}{extension}")
        soundfile.write(files[-1], samples, rate)
    return files


def labels(count: int) -> list[str]:
    """Prompts of 5 to 8 words."""
    things = "dog cat train rain violin engine door crowd bird stream hammer bell".split()
    manners = "loud soft distant short repeated low high broken".split()
    places = "a forest|the street|a small room|a church|the sea|an old factory|a kitchen|the mountains".split("|")
    texts = [f"this is a {manner} {thing} in {place}" for place in places for manner in manners for thing in things]
    return [texts[i % len(texts)] if i < len(texts) else f"{texts[i % len(texts)]} {i}" for i in range(count)]
