"""A short run of the fuzzer of `make fuzz`."""

from __future__ import annotations

import pytest
from tools.fuzz_audio import run

# Streams that state no length, cut between two frames.
UNDETECTABLE = (
    *("wav-pipe-ffmpeg", "mp3-pipe", "mp3-no-tag", "mp3-vbr-no-tag", "mp3-id3v1", "mp3-tags", "mp2"),
    *("chain-mp3-no-tag", "aac-adts"),
)


@pytest.mark.slow
@pytest.mark.parametrize("programs", [True, False])
def test_mutated_files_are_decoded_refused_or_reported(tmp_path, monkeypatch, programs):
    if not programs:
        monkeypatch.setenv("PATH", str(tmp_path))  # libsndfile alone
    result = run(count=500, seed=3)
    assert result["false alarms on valid files"] == []
    assert result["valid files"] >= 50
    outcomes = result["outcomes"]
    assert set(outcomes) <= {"refused", "reported", "as long as before", "silent shortening"}, result["to look at"]
    assert min(outcomes["refused"], outcomes["reported"]) > 50
    assert outcomes.get("silent shortening", 0) <= 0.01 * 500, result["to look at"]
    cuts = [line for line in result["to look at"] if " cut: " in line]
    assert all(line.split()[1].startswith(UNDETECTABLE) for line in cuts), cuts
