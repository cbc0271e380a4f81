"""A short run of the fuzzer of `make fuzz`."""

from __future__ import annotations

import pytest

from tools import fuzz_audio


@pytest.mark.slow
@pytest.mark.parametrize("programs", [True, False])
def test_mutated_files_are_decoded_refused_or_reported(tmp_path, monkeypatch, programs):
    if not programs:
        monkeypatch.setenv("PATH", str(tmp_path))  # libsndfile alone
    result = fuzz_audio.run(count=500, seed=3)
    assert result["false alarms on valid files"] == []
    assert result["valid files"] >= 50
    outcomes = result["outcomes"]
    told = {"refused", "reported", "as long as before"}
    assert set(outcomes) <= told | {"silent shortening", "cut stream without length"}, result["to look at"]
    assert min(outcomes["refused"], outcomes["reported"]) > 50
    assert result["silent share"] <= 0.01, result["to look at"]
    assert "silent shortening" not in result["by mutation"]["cut"], result["to look at"]


def test_a_stopped_run_goes_on_from_its_record(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(fuzz_audio, "SOUNDFILE", {"wav": "PCM_16"})
    whole = fuzz_audio.run(count=12, seed=3)
    stopped = fuzz_audio.run(count=12, seed=3, minutes=0)
    assert stopped["mutated files"] == 0
    half = fuzz_audio.run(count=5, seed=3, record=stopped)
    gone_on = fuzz_audio.run(count=12, seed=3, record=half)
    assert {**gone_on, "seconds": 0} == {**whole, "seconds": 0}
    with pytest.raises(ValueError, match="The record has seed 3 and 3 valid files, expected 4 and"):
        fuzz_audio.run(count=12, seed=4, record=half)
