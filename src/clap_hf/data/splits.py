"""Splits of datasets in folders and on the Hub, as they are now."""

from __future__ import annotations

from pathlib import Path

import datasets

from ..atomic_io import check_unpacked


def load_split(name: str, split: str, config: str | None = None, revision: str | None = None) -> datasets.Dataset:
    """A split of a dataset.

    `datasets` keeps what it read of a folder that has a card under the folder's last name alone: a set that was built
    again, or another of that name, would come out of its cache. Parquet files are therefore named one by one, which
    it distinguishes by path and time.

    Args:
        name: Folder or Hub id.
        split: Name of a split, or an expression such as `train+validation`.
        config: Configuration, where there are several.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ValueError: If a file is damaged, or unpacks to far more than its size.
    """
    if Path(name).is_dir():
        found = datasets.load_dataset_builder(name, config).config.data_files or {}
        files = {key: [str(file) for file in own] for key, own in found.items()}
        if all(file.endswith(".parquet") for own in files.values() for file in own):
            for file in (file for own in files.values() for file in own):
                check_unpacked(Path(file))
            return datasets.load_dataset("parquet", data_files=files, split=split)
    return datasets.load_dataset(name, config, split=split, revision=revision)
