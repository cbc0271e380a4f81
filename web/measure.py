"""Measure the page beside Python: size of the download, vectors, first labels and time, as JSON.

    python web/measure.py build/web --corpus corpus/data/test-00000-of-00001.parquet --output web/measured.json

Needs chromium, chromedriver and selenium. Vectors are compared on the recordings in examples/, whole and resampled as
the parity tests do, and on the parity tests' captions; first labels also on clips of the sound corpus' test split.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile
import soxr
import torch

from clap_hf import MSClapModel, MSClapProcessor, embedded_checkpoint, load_audio
from clap_hf.audio import AUDIO_EXTENSIONS
from clap_hf.pipelines.zero_shot import DEFAULT_TEMPLATE

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from web.browser import chromium, serve  # noqa: E402

from test_parity import CAPTIONS, RATES  # noqa: E402

EMBED_FILE = """
const [url, done] = arguments;
const blob = await (await fetch(url, {cache: "no-store"})).blob();
clapHf.embedFile(blob).then(
    ({vector, starts}) => done({vector: [...vector], windows: starts.length}),
    (error) => done({error: error.message}));
"""
EMBED_TEXTS = """
const [texts, done] = arguments;
clapHf.embedTexts(texts).then((vectors) => done(vectors.map((vector) => [...vector])));
"""
# Beyond decoding: what log-mel and tower take, worker and back.
TIME_WINDOWS = """
const [url, runs, done] = arguments;
const blob = await (await fetch(url, {cache: "no-store"})).blob();
const {starts} = await clapHf.embedFile(blob);
const times = [];
for (let run = 0; run < runs; run++) {
    let first;
    await clapHf.embedFile(blob, () => { first ??= performance.now(); });
    times.push((performance.now() - first) / starts.length);
}
done(times);
"""


def parity_recordings(folder: Path) -> list[Path]:
    """The recordings in examples/, and of each the middle at another sampling rate, as files in `folder`."""
    found = []
    for i, path in enumerate(
        sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in AUDIO_EXTENSIONS)
    ):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        middle = samples[len(samples) // 4 :][: int((0.4 + 0.37 * i) * rate)]
        other_rate = RATES[i % len(RATES)]
        target = folder / f"{path.stem}-{other_rate}.wav"
        soundfile.write(target, soxr.resample(middle, rate, other_rate), other_rate, subtype="PCM_16")
        found += [Path(shutil.copy(path, folder)), target]
    return found


def corpus_clips(parquet: Path, folder: Path, count: int) -> tuple[list[Path], list[str]]:
    """Clips of a split of the sound corpus, taken by a hash of their ids, as files in `folder`, and their labels."""
    table = pq.read_table(parquet, columns=["id", "label", "category"]).to_pylist()
    rows = [i for i, row in enumerate(table) if row["category"] not in ("other", "speech", "music")]
    rows = sorted(rows, key=lambda i: hashlib.sha256(table[i]["id"].encode()).hexdigest())[:count]
    audio = pq.read_table(parquet, columns=["audio"]).column("audio")
    found = []
    for i in rows:
        data = audio[i]["bytes"].as_py()
        suffix = soundfile.info(io.BytesIO(data)).format.lower()
        found.append(folder / f"corpus-{i}.{suffix}")
        found[-1].write_bytes(data)
    return found, sorted({table[i]["label"] for i in rows})


def compare(site: Path, corpus: Path | None, clips: int) -> dict[str, Any]:
    """Everything that is measured."""
    model = MSClapModel.from_pretrained(embedded_checkpoint(), dtype=torch.float32).eval()
    processor = MSClapProcessor.from_pretrained(embedded_checkpoint())

    def audio_vectors(paths: list[Path]) -> np.ndarray:
        found = []
        for path in paths:
            sound = load_audio(path)
            with torch.inference_mode():
                features = processor(audio={"array": sound.samples, "sampling_rate": sound.sampling_rate})
                found.append(model.get_audio_features(**features).pooler_output[0].numpy())
        return np.stack(found)

    def text_vectors(texts: list[str]) -> np.ndarray:
        with torch.inference_mode():
            return model.get_text_features(**processor(text=texts)).pooler_output.numpy()

    with tempfile.TemporaryDirectory() as temporary:
        served_folder = Path(temporary, "site")
        shutil.copytree(site, served_folder)
        recordings = parity_recordings(served_folder)
        with (ROOT / "examples" / "labels.csv").open() as file:
            example_labels = sorted({row["label"] for row in csv.DictReader(file)})
        others, labels = corpus_clips(corpus, served_folder, clips) if corpus else ([], example_labels)
        long_file = served_folder / "long.wav"
        soundfile.write(long_file, np.tile(load_audio(served_folder / "music.mp3").samples.mean(axis=0), 10), 44_100)
        with serve(served_folder) as served, chromium(Path(temporary, "profile")) as browser:
            browser.set_script_timeout(300)
            browser.get(served.url)
            version = browser.capabilities["browserVersion"]

            def run(script: str, *values: Any) -> Any:
                found = browser.execute_async_script(f"(async () => {{{script}}})()", *values)
                if isinstance(found, dict) and "error" in found:
                    raise RuntimeError(f"{values}: {found['error']}")
                return found

            def page_texts(texts: list[str]) -> np.ndarray:
                return np.asarray(run(EMBED_TEXTS, texts), np.float32)

            def page_audio(paths: list[Path]) -> np.ndarray:
                return np.asarray([run(EMBED_FILE, path.name)["vector"] for path in paths], np.float32)

            page_texts(["a"])  # when the model is loaded
            requested = {request.split()[1].strip("/") or "index.html" for request in served.requests}
            downloads = {name: (site / name).stat().st_size for name in sorted(requested)}
            times = run(TIME_WINDOWS, long_file.name, 5)
            loads = os.getloadavg()
            page = {"text": page_texts(list(CAPTIONS)), "audio": page_audio(recordings), "clips": page_audio(others)}
            label_texts = [DEFAULT_TEMPLATE.replace("{}", label) for label in labels]
            page["labels"] = page_texts(label_texts)

        clip_paths = [*recordings[::2], *others]  # in examples/ as they are
        text, audio = text_vectors(list(CAPTIONS)), audio_vectors(recordings)
        python_clips = np.concatenate([audio[::2], audio_vectors(others)]) if others else audio[::2]
        page_clips = np.concatenate([page["audio"][::2], page["clips"]]) if others else page["audio"][::2]
        python_first = (python_clips @ text_vectors(label_texts).T).argmax(axis=1)
        page_first = (page_clips @ page["labels"].T).argmax(axis=1)

    audio_cosines = (audio * page["audio"]).sum(axis=1)
    clip_cosines = (python_clips * page_clips).sum(axis=1)
    return {
        "download_bytes": sum(downloads.values()),
        "downloads": downloads,
        "audio": {
            "recordings": len(recordings),
            "cosine": summary(audio_cosines, [path.name for path in recordings]),
        },
        "text": {"captions": len(CAPTIONS), "cosine": summary((text * page["text"]).sum(axis=1), CAPTIONS)},
        "first_label": {
            "clips": len(clip_paths),
            "labels": len(label_texts),
            "equal": float((python_first == page_first).mean()),
            "cosine": summary(clip_cosines, [path.name for path in clip_paths]),
            "different": {
                clip_paths[i].name: [label_texts[python_first[i]], label_texts[page_first[i]], float(clip_cosines[i])]
                for i in (python_first != page_first).nonzero()[0]
            },
        },
        "window_ms": {"median": float(np.median(times)), "lowest": min(times), "highest": max(times)},
        "machine": {
            "cores": os.cpu_count(),
            "load_average": loads[0],
            "processor": processor_name(),
            "chromium": version,
        },
    }


def summary(cosines: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The lowest, with its name, and the median of cosines."""
    lowest = int(cosines.argmin())
    return {"lowest": float(cosines[lowest]), "lowest_of": names[lowest], "median": float(np.median(cosines))}


def processor_name() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="What `make web` built.")
    parser.add_argument("--corpus", type=Path, help="Parquet file of the sound corpus' test split.")
    parser.add_argument("--clips", type=int, default=300, help="Clips of it.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write.")
    options = parser.parse_args()
    report = compare(options.site, options.corpus, options.clips)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
