"""Turn your copy of one of the paper's training sets into parquet files to stream from.

    python -m tools.training_sets --list
    python -m tools.training_sets clotho --root ~/data/clotho --output data/clotho
    python -m tools.training_sets nsynth --root ~/data/nsynth --output data/nsynth --push-to-hub ORG/nsynth-pairs

A set that may not be passed on is built for your own machines only.
"""

from pathlib import Path
from typing import Annotated

import typer

from clap_hf.data.registry import training_set, training_sets
from clap_hf.hub import push
from tools.training_sets.prepare import build_dataset, read_ids, refuse_to_share


def main(
    source: Annotated[str | None, typer.Argument(help="Key of the set, see --list.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Show all sets and their terms.")] = False,
    root: Annotated[Path | None, typer.Option(help="Folder with your copy.")] = None,
    output: Annotated[Path | None, typer.Option(help="Gets the parquet files.")] = None,
    exclude: Annotated[list[Path] | None, typer.Option(help="File of ids to leave out (repeatable).")] = None,
    hold_out: Annotated[int, typer.Option(min=0, help="Clips for a validation split.")] = 0,
    push_to_hub: Annotated[str | None, typer.Option(help="Upload here, where the license allows it.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Build a training set from your copy of it."""
    if show:
        for name, entry in training_sets().items():
            print(f"{name}: {entry.title}, {entry.pairs}\n  {entry.original}\n  {entry.license} ({entry.access})")
            print(f"  layout: {entry.layout}\n  leave out: {entry.exclude}")
        return
    if source is None or root is None or output is None:
        raise typer.BadParameter("expected SOURCE, --root and --output, or --list.")
    try:
        if push_to_hub is not None:
            refuse_to_share(source)  # before hours of building
        excluded = frozenset().union(*(read_ids(path) for path in exclude or ()))
        report = build_dataset(source, root, output, excluded, hold_out)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    print(f"{report['rows']:,} rows of {report['clips']:,} clips, {report['seconds'] / 3600:.1f} h")
    print(f"{report['excluded']} clips excluded, {len(report['skipped'])} skipped: see build_report.json")
    print(f"Leave out also: {training_set(source).exclude}")
    if push_to_hub is not None:
        done = push(output, push_to_hub, repo_type="dataset", private=private or None)
        print(done.commit.repo_url if done.commit else f"{push_to_hub} is up to date")


if __name__ == "__main__":
    typer.run(main)
