"""Make the embedded checkpoint of a training run: float16 weights, processor, and a card from the run's records.

    python -m tools.release.sealed_test --weights RUN/best --dataset sound-corpus --why "..." --output-dir sealed
    clap-hf evaluate RUN/best --suite sounds --data-dir sound-corpus --output-dir results \\
        --relabelled model_cards/embedded.relabelled.json
    python -m tools.release.export_embedded --run RUN --results results/results.json --dataset sound-corpus \\
        --test-looks 31 --sealed sealed/results.json

The records are copied to `model_cards/`, so that the card can be written again without the run and the corpus. It then
also states what docs/calibration.md, docs/timeline.md and `tools.release.hubs` measure of the new weights, by their
commands:

    python -m tools.release.export_embedded
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import datasets
import torch
import typer

import clap_hf
from clap_hf.atomic_io import replace_folder, write_json, write_text
from clap_hf.cards import (
    AVERAGE,
    CORPUS,
    EARLIER,
    HUBS,
    LOOKS,
    RESULTS,
    RUN,
    SEALED,
    corpus_facts,
    read_records,
    write_card,
)

ROOT = Path(__file__).parent.parent.parent
MOMENTS, CALIBRATION = ROOT / "docs" / "records" / "moments.json", ROOT / "benchmarks" / "calibration.json"


def export_weights(source: Path, folder: Path) -> None:
    """Save model and processor without the remote code, which the package itself is; weights as float16.

    Args:
        source: Folder of `save_pretrained`.
        folder: Where to write.
    """
    model = clap_hf.MSClapModel.from_pretrained(source, dtype=torch.float32)
    processor = clap_hf.MSClapProcessor.from_pretrained(source)
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    for code in folder.glob("*.py"):
        code.unlink()
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        for part in (content, content.get("feature_extractor", {})):
            if isinstance(part, dict):
                part.pop("auto_map", None)
        if path.name == "config.json":
            content["text_config"].pop("_name_or_path", None)
            content["dtype"] = "float32"  # what from_pretrained's default loads it as
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def main(
    run: Annotated[Path | None, typer.Option(help="Output folder of training, with run.jsonl and best/.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of tools.release.average_weights; the run's best/ by default.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="results.json of clap-hf evaluate.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Corpus of the run, for the list of its licenses.")] = None,
    output: Annotated[Path, typer.Option(help="Folder to write.")] = ROOT / "src" / "clap_hf" / "embedded",
    records: Annotated[Path, typer.Option(help="Where the records are kept.")] = ROOT / "model_cards",
    test_looks: Annotated[
        int | None, typer.Option(help="Sets of weights that were measured on the test in all, these included.")
    ] = None,
    sealed: Annotated[Path | None, typer.Option(help="results.json of tools.release.sealed_test.")] = None,
) -> None:
    """Export a run, or write the card of the exported one again."""
    if weights is not None and run is None:
        raise typer.BadParameter("--weights needs --run, for the records of the run that they come from.")
    stored = {
        name: records / f"embedded.{name}" for name in (RUN, EARLIER, AVERAGE, RESULTS, CORPUS, SEALED, LOOKS, HUBS)
    }
    source = run and (weights or run / "best")
    if run is not None and source is not None:
        stored[SEALED].unlink(missing_ok=True)
        for folder, names in ((run, (RUN, EARLIER)), (source, (AVERAGE,))):
            for name in names:
                stored[name].unlink(missing_ok=True)
                if (folder / name).is_file():
                    write_text(stored[name], (folder / name).read_text(encoding="utf-8"))
    if results is not None:
        write_json(stored[RESULTS], json.loads(results.read_text(encoding="utf-8")) | {"test_looks": test_looks})
    if sealed is not None:
        write_json(stored[SEALED], json.loads(sealed.read_text(encoding="utf-8")))
    if dataset is not None:
        lines = [json.loads(line) for line in stored[RUN].read_text(encoding="utf-8").splitlines()]
        split = [line["recipe"] for line in lines if "recipe" in line][-1].get("split", "train")
        rows = datasets.load_dataset(dataset, split=split).remove_columns("audio")
        write_json(stored[CORPUS], corpus_facts(rows, split))
    found = read_records(
        stored[RUN],
        stored[RESULTS],
        stored[CORPUS],
        earlier=stored[EARLIER],
        average=stored[AVERAGE],
        moments=None if run else MOMENTS,  # of the weights before, until they are measured again
        calibration=None if run else CALIBRATION,
        sealed=stored[SEALED],
        looks=stored[LOOKS],
        hubs=None if run else stored[HUBS],
    )

    def write(folder: Path) -> None:
        if source is not None:
            export_weights(source, folder)
        else:
            shutil.copytree(output, folder)
        write_card(folder, folder, found, license="mit")

    replace_folder(output, write)
    size = sum(file.stat().st_size for file in output.iterdir()) / 2**20
    typer.echo(f"{output}: {size:.1f} MiB")


if __name__ == "__main__":
    typer.run(main)
