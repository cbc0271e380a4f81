"""msclap 1.3.4's interface on this package's models: `from clap_hf.compat.msclap import CLAP`.

Values equal msclap's within 1e-5 (`docs/migrate.md` has the table), except where `msclap_quirks=True` is asked for: a
random crop of longer clips, channels laid end to end, and texts pooled by their count of ids that are not 0, the id of
"!" and of padding.
"""

from __future__ import annotations

import math
import random
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from tokenizers.processors import ByteLevel
from torch import nn
from torch.utils.data import default_collate

from ..audio import load_audio
from ..embedding import WINDOWS_PER_BATCH
from ..model.feature_extraction_msclap import resample as resample_samples
from ..model.modeling_msclap import MSClapModel, mean_over_windows
from ..model.modeling_msclap_captioning import MSClapForAudioCaptioning
from ..msclap_weights import OFFICIAL_REPO, load_clapcap_checkpoint, load_msclap_checkpoint, official_file
from ..pretrained import load_checked, load_config
from ..tokenization import END_TOKEN
from .modules import AudioEncoder, AudioTower, Captioner, DualEncoder, Temperature, TextEncoder

# What msclap's YAML files hold and no model of ours: `args` of every version, and of one.
ARGS = {"freeze_text_encoder_weights": True, "fmin": 50, "temperature": 0.003, "num_classes": 527}
VERSION_ARGS: dict[str, dict[str, Any]] = {
    "2022": {"fmax": 14_000, "n_fft": 1028, "batch_size": 1024, "demo": False},
    "2023": {"fmax": 8_000, "n_fft": 1024, "batch_size": 1024, "demo": False},
    "clapcap": {
        **{"fmax": 8_000, "n_fft": 1024, "batch_size": 128, "clapcap_model": "ClapCaption", "text_decoder": "gpt2"},
        **{"mapping_type": "transformer", "normalize_prefix": True, "freeze_gpt_weights": True},
        "cross_attention": False,
    },
}
TOWER_NAMES = {"htsat": "HTSAT", "cnn14": "Cnn14", "bert": "bert-base-uncased"}


class CLAP:
    """CLAP with the constructor, methods and attributes of `msclap.CLAP`.

    Args:
        model_fp: Official `.pth` file, or a folder of this package's models; the official file on the Hub when None.
        version: `"2022"`, `"2023"` or `"clapcap"`.
        use_cuda: Whether to use a GPU, where there is one.
        msclap_quirks: Whether to crop longer clips at random, lay channels end to end, and pool texts as msclap.
        tokenizer: Folder or Hub id of the tokenizer, for an official file; its own on the Hub when None.

    Raises:
        ValueError: If the version is unknown, or the file or folder holds another model.
        OSError: If a file is missing.
    """

    model_repo = OFFICIAL_REPO
    model_name = {version: official_file(version) for version in VERSION_ARGS}

    def __init__(
        self,
        model_fp: str | Path | None = None,
        version: str = "2023",
        use_cuda: bool = False,
        *,
        msclap_quirks: bool = False,
        tokenizer: str | Path | None = None,
    ):
        file = official_file(version)
        self.model_fp = model_fp or hf_hub_download(self.model_repo, file)
        self.use_cuda, self.msclap_quirks = use_cuda, msclap_quirks
        self.supported_versions = self.model_name.keys()
        device = "cuda" if use_cuda and torch.cuda.is_available() else "cpu"
        self._model, self.processor = _load(Path(self.model_fp), version, tokenizer)
        self._model.to(device)
        extractor, config = self.processor.feature_extractor, self._model.config
        classes = _audioset_layer(Path(self.model_fp)) if version == "2022" else None
        base = AudioTower(self._model.audio_model, extractor, classes)
        self._audio_encoder = AudioEncoder(base, self._model.audio_projection).to(device).eval()
        is_gpt2 = config.text_config.model_type == "gpt2"
        if version == "clapcap":
            self.clapcap = Captioner(self._audio_encoder, self._model).eval()
        else:
            text = TextEncoder(self._model, count_ids=msclap_quirks and is_gpt2)
            self.clap = DualEncoder(self._audio_encoder, text, self._model.logit_scale).eval()
        self.tokenizer = self._plain_tokenizer(is_gpt2)
        self.token_keys = ["input_ids", *([] if is_gpt2 else ["token_type_ids"]), "attention_mask"]
        self.args = self._make_args(version)

    def _plain_tokenizer(self, is_gpt2: bool) -> Any:
        """The text tower's tokenizer as its authors published it; padded with "!" where msclap's quirks are on."""
        tokenizer = deepcopy(self.processor.tokenizer)
        tokenizer.model_max_length = self._model.config.text_config.max_position_embeddings
        if is_gpt2:
            tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)
            if self.msclap_quirks:
                tokenizer.add_special_tokens({"pad_token": "!"})
        return tokenizer

    def _make_args(self, version: str) -> Namespace:
        """msclap's settings of a version, with those of the loaded model."""
        extractor, config = self.processor.feature_extractor, self._model.config
        tower, text = config.audio_config.architecture, config.text_config
        duration = float(extractor.duration_s)
        found = {
            "text_model": TOWER_NAMES.get(text.model_type, text.model_type),
            "transformer_embed_dim": text.hidden_size,
            "audioenc_name": TOWER_NAMES[tower],
            "out_emb": config.audio_config.hidden_size,
            "sampling_rate": extractor.sampling_rate,
            "duration": int(duration) if duration.is_integer() else duration,
            "hop_size": extractor.hop_length,
            "mel_bins": extractor.feature_size,
            "window_size": extractor.n_fft,
            "d_proj": config.projection_dim,
        }
        if version == "clapcap":
            found |= {"prefix_length": config.prefix_length, "prefix_length_clip": config.mapper_input_length}
            found |= {"num_layers": config.mapper_num_layers, "prefix_dim": config.projection_dim}
        else:
            found["text_len"] = self.processor.tokenizer.model_max_length
        return Namespace(**ARGS, **VERSION_ARGS[version], **found)

    default_collate = staticmethod(default_collate)

    def read_audio(self, audio_path: str | Path, resample: bool = True) -> tuple[torch.Tensor, int]:
        """Samples `[channels, samples]` of a file, at the model's rate if they are resampled, and that rate, Hz."""
        audio, rate = load_audio(audio_path), self.args.sampling_rate
        samples = torch.from_numpy(audio.samples)
        if resample:
            # Float32 phases are torchaudio's rounding: in bands without sound, log-mels would differ by more.
            channels = [resample_samples(channel, audio.sampling_rate, rate, torch.float32) for channel in samples]
            samples = torch.stack(channels)
        return samples, rate

    def load_audio_into_tensor(
        self, audio_path: str | Path, audio_duration: float, resample: bool = False
    ) -> torch.Tensor:
        """One crop of a file, `[samples]`: the middle of a longer one, a shorter one repeated.

        Args:
            audio_path: Sound file.
            audio_duration: s.
            resample: Whether to resample to the model's rate; the samples are taken to be at it otherwise.
        """
        channels, rate = self.read_audio(audio_path, resample)
        samples = channels.reshape(-1) if self.msclap_quirks else channels.mean(dim=0)
        length, total = round(audio_duration * rate), samples.shape[0]
        if length >= total:
            return samples.repeat(math.ceil(length / total))[:length]
        start = random.randrange(total - length) if self.msclap_quirks else (total - length) // 2
        return samples[start : start + length]

    def preprocess_audio(self, audio_files: Sequence[str | Path], resample: bool) -> torch.Tensor:
        """One crop of every file, `[files, 1, samples]`, see `load_audio_into_tensor`."""
        crops = [self.load_audio_into_tensor(file, self.args.duration, resample) for file in audio_files]
        return torch.stack(crops)[:, None].to(self._model.device)

    def preprocess_text(self, text_queries: Sequence[str]) -> dict[str, torch.Tensor]:
        """Tokens `[texts, text_len]`, padded by 0; longer texts are cut before the end token, an error in msclap."""
        length, texts = self.args.text_len, list(text_queries)
        if self.msclap_quirks:
            end = f" {END_TOKEN}" if "gpt" in self.args.text_model else ""
            found = self.tokenizer(
                [text + end for text in texts], padding="max_length", max_length=length, return_tensors="pt"
            )
            found["token_type_ids"] = torch.zeros_like(found["input_ids"])
            return {name: found[name].to(self._model.device) for name in self.token_keys}
        found = self.processor.tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        found["input_ids"] = found["input_ids"].masked_fill(found["attention_mask"] == 0, 0)
        found["token_type_ids"] = torch.zeros_like(found["input_ids"])
        return {name: found[name].to(self._model.device) for name in self.token_keys}

    def get_text_embeddings(self, class_labels: Sequence[str]) -> torch.Tensor:
        """Vectors of texts, not normalised, `[texts, d_proj]`."""
        return self._get_text_embeddings(self.preprocess_text(class_labels))

    @torch.no_grad()
    def get_audio_embeddings(self, audio_files: Sequence[str | Path], resample: bool = True) -> torch.Tensor:
        """Vectors of files, not normalised, `[files, d_proj]`.

        Of a file longer than the model's window: the mean of its windows' unit vectors, as `embed_files`, at the mean
        of the windows' lengths; of msclap, the vector of a random crop.
        """
        if self.msclap_quirks:
            return self._get_audio_embeddings(self.preprocess_audio(audio_files, resample))
        loaded = [self.read_audio(file, resample)[0].mean(dim=0) for file in audio_files]
        extractor = self.processor.feature_extractor
        windows = list(extractor.windows(loaded, self.args.sampling_rate, long_audio="windows", short_audio="repeat"))
        batches = torch.stack([window for clip in windows for window in clip]).split(WINDOWS_PER_BATCH)
        vectors = torch.cat([self._audio_encoder(batch.to(self._model.device))[0] for batch in batches])
        if len(vectors) == len(windows):
            return vectors
        counts, lengths = torch.tensor([len(clip) for clip in windows]), vectors.norm(dim=-1, keepdim=True)
        mean = mean_over_windows(vectors / lengths, counts, len(counts))
        return F.normalize(mean, dim=-1) * mean_over_windows(lengths, counts, len(counts))

    @torch.no_grad()
    def _get_text_embeddings(self, preprocessed_text: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.clap.caption_encoder(preprocessed_text)

    @torch.no_grad()
    def _get_audio_embeddings(self, preprocessed_audio: torch.Tensor) -> torch.Tensor:
        return self._audio_encoder(preprocessed_audio.flatten(1))[0]

    def get_audio_embeddings_per_batch(
        self, audio_files: Sequence[str | Path], batch_size: int
    ) -> Iterator[torch.Tensor]:
        """`get_audio_embeddings` of `batch_size` files after another."""
        starts = range(0, len(audio_files), batch_size)
        return (self.get_audio_embeddings(audio_files[start : start + batch_size]) for start in starts)

    def get_text_embeddings_per_batch(self, class_labels: Sequence[str], batch_size: int) -> Iterator[torch.Tensor]:
        """`get_text_embeddings` of `batch_size` texts after another."""
        starts = range(0, len(class_labels), batch_size)
        return (self.get_text_embeddings(class_labels[start : start + batch_size]) for start in starts)

    def compute_similarity(self, audio_embeddings: torch.Tensor, text_embeddings: torch.Tensor) -> torch.Tensor:
        """exp(logit_scale) x cosine of every pair, `[clips, texts]`."""
        audio, text = F.normalize(audio_embeddings, dim=-1), F.normalize(text_embeddings, dim=-1)
        return (self.clap.logit_scale.exp() * text @ audio.T).T

    @torch.no_grad()
    def generate_caption(
        self,
        audio_files: Sequence[str | Path],
        resample: bool = True,
        beam_size: int = 5,
        entry_length: int = 67,
        temperature: float = 1.0,
    ) -> list[str]:
        """A caption of every file, by beam search.

        Args:
            audio_files: Sound files.
            resample: Whether to resample to the model's rate.
            beam_size: Beams.
            entry_length: Tokens at most.
            temperature: What logits are divided by; 0 or less is 1.
        """
        embeds = F.normalize(self.get_audio_embeddings(audio_files, resample), dim=-1)
        divisor = temperature if temperature > 0 else 1.0
        options = {} if divisor == 1.0 else {"logits_processor": [Temperature(divisor)]}
        prefix = self._model.mapper(embeds[:, None])
        tokens = self._model.generate_from(prefix, num_beams=beam_size, max_new_tokens=entry_length, **options)
        end = self._model.generation_config.eos_token_id
        captions = [ids[: ids.index(end) + 1] if end in ids else ids for ids in tokens.tolist()]
        return [self.tokenizer.decode(ids).capitalize() for ids in captions]


CLAPWrapper = CLAP


def _load(path: Path, version: str, tokenizer: str | Path | None) -> tuple[Any, Any]:
    """Model and processor of an official file or of a folder."""
    if not path.is_dir():
        if version == "clapcap":
            return load_clapcap_checkpoint(path, tokenizer)
        return load_msclap_checkpoint(path, version, tokenizer)
    cls, expected = (
        (MSClapForAudioCaptioning, "msclap_captioning") if version == "clapcap" else (MSClapModel, "msclap")
    )
    found = load_config(str(path)).model_type
    if found != expected:
        raise ValueError(f"{path} holds a model of type {found!r}, expected {expected!r} for version {version!r}.")
    return load_checked(cls, str(path), dtype=torch.float32)


def _audioset_layer(path: Path) -> nn.Linear | None:
    """CNN14's layer of AudioSet classes in an official file; a folder of ours has none."""
    if path.is_dir():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)["model"]
    weight, bias = (state[f"audio_encoder.base.fc_audioset.{name}"] for name in ("weight", "bias"))
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def install() -> None:
    """Make `import msclap` in this process find this module, for packages that import msclap by themselves.

    Raises:
        RuntimeError: If the other msclap is imported already: what holds its names would keep them.
    """
    found = sys.modules.get("msclap")
    if found is not None and found.__dict__.get("CLAP") is not CLAP:
        raise RuntimeError("msclap is imported already, expected install() before anything imports it.")
    for name in ("msclap", "msclap.CLAPWrapper"):
        module = ModuleType(name, __doc__)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__.update(CLAP=CLAP, CLAPWrapper=CLAPWrapper)
        sys.modules[name] = module
    sys.modules["msclap"].__dict__["CLAPWrapper"] = sys.modules["msclap.CLAPWrapper"]


if __name__ == "__main__":
    from .check import main

    sys.exit(main())
