"""Files are written whole or not at all."""

import pytest

from clap_hf.atomic_io import replacing, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "numbers.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()

    with pytest.raises(OSError, match="No space left"), replacing(path) as fresh:
        fresh.write_text("{")
        raise OSError("No space left on device")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["numbers.json"]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "vectors.safetensors"
    path.write_text("old")
    with replacing(path) as fresh:
        fresh.write_text("new")
        assert path.read_text() == "old"
        assert fresh.suffix == ".new"  # what is not whole never ends in .safetensors, nor is it uploaded
    assert path.read_text() == "new"
