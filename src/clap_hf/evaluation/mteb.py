"""MTEB and its audio benchmark MAEB: `mteb.evaluate(MtebEncoder(model, processor, "org/clap"), tasks)`.

Sounds come at their own rates and are resampled by the feature extractor, to 44.1 kHz for the released models: mteb's
sentence-transformers wrapper would resample to 16 kHz, and take the model for one of text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from rich.console import Console
from rich.table import Table

from ..embedding import ClapEncoder, embed_clips, embed_texts
from ..model.modeling_msclap import MSClapModel
from ..model.processing_msclap import MSClapProcessor

BENCHMARK = "MAEB(v1)"


class MtebEncoder(AbsEncoder):
    """CLAP as an mteb encoder of audio and text.

    Args:
        model: In evaluation mode, on its device.
        processor: Its processor; its policies for long and short audio apply.
        name: `organization/model`, the model's name in results.
        revision: Its revision, for results.

    Example:

    ```python
    >>> import mteb
    >>> encoder = MtebEncoder(model, processor, "org/clap")
    >>> mteb.evaluate(encoder, mteb.get_benchmark("MAEB(v1)").tasks)
    ```
    """

    def __init__(self, model: MSClapModel, processor: MSClapProcessor, name: str, revision: str | None = None):
        self.model, self.processor = model, processor
        self.mteb_model_meta = ModelMeta(
            loader=None,  # results are of this very object
            name=name if "/" in name else f"local/{name}",
            revision=revision or "no_revision_available",
            release_date=None,
            languages=["eng-Latn"],
            n_parameters=sum(parameter.numel() for parameter in model.parameters()),
            memory_usage_mb=None,
            max_tokens=processor.tokenizer.model_max_length,
            embed_dim=model.config.projection_dim,
            license=None,
            open_weights=True,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            modalities=["audio", "text"],
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,  # mteb's encode_kwargs: batch_size and the like went into the loader
    ) -> np.ndarray:
        """Embed batches of sounds, texts or both.

        Args:
            inputs: Loader of dicts with `audio` (dicts of `array` and `sampling_rate`, or decoders), `text`, or both.
            task_metadata: Not used: CLAP takes no instructions.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Not used.
            **kwargs: Not used.

        Returns:
            Unit vectors `[items, projection_dim]`; of items with both, the normalised mean.
        """
        batches = [self._embed(batch) for batch in inputs]
        return torch.cat(batches).numpy()

    @torch.inference_mode()
    def _embed(self, batch: dict[str, Any]) -> torch.Tensor:
        vectors = []
        if "audio" in batch:
            clips = self.processor.feature_extractor(list(batch["audio"]), return_tensors=None)["input_features"]
            vectors.append(embed_clips(self.model, [torch.from_numpy(clip) for clip in clips]))
        if "text" in batch:
            vectors.append(embed_texts(self.model, self.processor.tokenizer, list(batch["text"])).cpu())
        if not vectors:
            raise ValueError(f"A batch has {sorted(batch)}, expected audio, text or both.")
        return F.normalize(torch.stack(vectors).mean(dim=0), dim=-1)


def run_maeb(
    encoder: ClapEncoder, tasks: Sequence[str] | None, output_dir: Path, console: Console, dry_run: bool = False
) -> int:
    """Run the audio benchmark of mteb; it downloads its own data sets and keeps its own results.

    Args:
        encoder: The model.
        tasks: Names of some of its tasks; all when None.
        output_dir: Gets mteb's results, in `maeb/`; a later run goes on from them.
        console: For the tables.
        dry_run: Only list the tasks.

    Returns:
        0 if every task ran, 1 if one failed.

    Raises:
        ValueError: If a task is not of the benchmark.
    """
    import mteb
    from mteb.cache import ResultCache

    chosen = list(mteb.get_benchmark(BENCHMARK).tasks)
    names = [task.metadata.name for task in chosen]
    unknown = [name for name in tasks or () if name not in names]
    if unknown:
        raise ValueError(f"tasks {unknown} are not in {BENCHMARK}, expected some of {names}.")
    if tasks is not None:
        chosen = [task for task in chosen if task.metadata.name in tasks]
    listing = Table("task", "type", "data set", title=BENCHMARK)
    for task in chosen:
        listing.add_row(task.metadata.name, task.metadata.type, task.metadata.dataset["path"])
    console.print(listing)
    if dry_run:
        return 0
    revision = encoder.settings()["fingerprint"]
    model = MtebEncoder(encoder.model, encoder.processor, Path(encoder.name).name, revision)
    results = mteb.evaluate(model, chosen, raise_error=False, cache=ResultCache(output_dir / "maeb"))
    table = Table("task", "main score", title=f"{encoder.name} on {BENCHMARK}")
    for result in results.task_results:
        table.add_row(result.task_name, f"{result.get_score():.4f}")
    failures = results.exceptions or []
    for failure in failures:
        table.add_row(failure.task_name, f"[red]failed:[/] {failure.exception[:200]}")
    console.print(table)
    return 1 if failures else 0
