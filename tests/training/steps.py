"""A contrastive step on a tiny model with everything random switched on, on one process or several."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from clap_hf import MSClapFeatureExtractor, MSClapProcessor
from clap_hf.tokenization import sentence_tokenizer
from clap_hf.training.contrastive_stage import ContrastiveStage
from clap_hf.training.distributed import average_gradients
from clap_hf.training.recipe import ContrastiveRecipe, TextTower
from clap_hf.training.stage import Position
from conftest import TESTS, TINY_AUDIO, TINY_CNN14, TINY_GPT2, make_config, make_model

BATCH = 12
STEP = Position(seed=3, step=5, epoch=0, rank=0, world_size=1)
CAPTIONS = ["a dog barks", "rain on a tin roof, and far thunder", "silence!", "a train passes by at night"]
HTSAT = TINY_AUDIO | {"drop_path_rate": 0.4, "hidden_dropout_prob": 0.1, "spec_augment_time_width": 40}
CNN14 = TINY_CNN14 | {"conv_dropout": 0.2, "head_dropout": 0.3}
GPT2 = TINY_GPT2 | {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
BERT = {
    "model_type": "bert", "vocab_size": 50257, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64,
}  # fmt: skip


def make_stage(
    audio, text=GPT2, loss="contrastive", dtype=torch.float64, still=False, chunk_size=1, **settings
) -> ContrastiveStage:
    """In float64, so that a wrong step cannot hide behind rounding, nor a right one fail by it.

    With a `chunk_size`, whatever it is, chunks are encoded twice; None keeps the graphs of all.
    """
    model = make_model(text, audio, projection_dropout=0.5).train().to(dtype)
    for module in model.modules() if still else ():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    recipe = ContrastiveRecipe(
        name="step", dataset="", audio={}, features={}, text=TextTower(config={}), batch_size=BATCH, loss=loss,
        augmentation=None, chunk_size=chunk_size, **settings,
    )  # fmt: skip
    folder = TESTS / "tokenizers" / ("gpt2" if text is GPT2 else "bert-base-uncased")
    processor = MSClapProcessor(
        MSClapFeatureExtractor(), sentence_tokenizer(folder, make_config(text).text_config, max_length=77)
    )
    stage = ContrastiveStage(model, processor, recipe, data=None, evaluation=None)
    stage.train_mode()
    return stage


def make_batch(stage: ContrastiveStage) -> dict[str, torch.Tensor]:
    """Clips of very different levels, sorted by level: the worst case for statistics of chunks."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(BATCH, 1, 201, 32, generator=generator) * torch.linspace(2, 20, BATCH).view(-1, 1, 1, 1)
    features += torch.linspace(-80, -10, BATCH).view(-1, 1, 1, 1)
    texts = [f"{CAPTIONS[i % 4]} {'again ' * (i // 4)}" for i in range(BATCH)]
    tokens = stage.processor.tokenizer(texts, padding=True, return_tensors="pt")
    return {
        "input_features": features.to(stage.model.dtype),
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "groups": torch.arange(BATCH) // 2,
        "clips": torch.arange(BATCH) // 3,
        "texts": torch.arange(BATCH) // 2,
    }


def gradients(stage: ContrastiveStage) -> dict[str, torch.Tensor]:
    named = [*stage.model.named_parameters(), *stage.criterion.named_parameters(prefix="criterion")]
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def cached_step(stage: ContrastiveStage, batch, chunk_size: int, rank: int = 0, world_size: int = 1):
    """Gradients and buffers after one step of this rank's share, averaged over the ranks."""
    buffers = {name: buffer.clone() for name, buffer in stage.model.named_buffers()}
    stage.model.zero_grad()
    stage.criterion.zero_grad()
    stage.set_chunk_size(chunk_size)
    share = BATCH // world_size
    part = {name: value[rank * share : (rank + 1) * share] for name, value in batch.items()}
    position = Position(STEP.seed, STEP.step, STEP.epoch, rank, world_size)
    metrics = stage.backward(Accelerator(cpu=True), part, position)
    parameters = [*stage.model.parameters(), *stage.criterion.parameters()]
    average_gradients(parameters)
    after = {name: buffer.clone() for name, buffer in stage.model.named_buffers()}
    for name, buffer in stage.model.named_buffers():
        buffer.copy_(buffers[name])
    return gradients(stage), after, {name: float(value) for name, value in metrics.items()}


def work(process: int, processes: int, cases: list, folder: str) -> None:
    """Body of a spawned process: every case's step, its result saved by the main one and compared by the test."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(process), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(process)}
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }  # for Accelerate; unused
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(minutes=2), rank=process, world_size=processes
    )
    results = {}
    for name, arguments, chunk_size in cases:
        stage = make_stage(**arguments)
        results[name] = cached_step(stage, make_batch(stage), chunk_size, process, processes)
    torch.save(results, f"{folder}/{process}.pt")
    dist.destroy_process_group()
