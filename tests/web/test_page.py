"""The page in a browser: sounds dropped, labelled, searched and played, as Python does it, and offline."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from web.browser import chromium, missing, serve

from clap_hf import MSClapModel, MSClapProcessor, embedded_checkpoint, load_audio
from clap_hf.calibration import FALSE_ALARMS, Calibration
from clap_hf.export import export_web
from conftest import EXAMPLES

CALIBRATION = Calibration.load(embedded_checkpoint() / "calibration.safetensors")
WEB = Path(__file__).parent.parent.parent / "web"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


@pytest.fixture(scope="module")
def embedded() -> tuple[MSClapModel, MSClapProcessor]:
    model = MSClapModel.from_pretrained(embedded_checkpoint(), dtype=torch.float32).eval()
    return model, MSClapProcessor.from_pretrained(embedded_checkpoint())


@pytest.fixture(scope="module")
def site(embedded: tuple[MSClapModel, MSClapProcessor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page as `make web` builds it."""
    folder = tmp_path_factory.mktemp("web")
    source = shutil.copytree(WEB, folder / "source", ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(install, cwd=source, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"npm ci failed: {installed.stderr.strip()[-200:]}")
    export_web(*embedded, folder / "model", CALIBRATION)
    subprocess.run(["node", "build.mjs", folder / "model", folder / "site"], cwd=source, check=True)
    yield folder / "site"
    shutil.rmtree(folder)  # 100 MB


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as users have them: recordings at several rates, a long one, and files that are none."""
    folder = tmp_path_factory.mktemp("sounds")
    for name in ("dog.ogg", "bird.wav", "glass_break.ogg", "music.mp3", "README.md"):
        shutil.copy(EXAMPLES / name, folder)
    (folder / "below").mkdir()
    shutil.copy(EXAMPLES / "thunder.ogg", folder / "below")
    sheep, dog = load_audio(EXAMPLES / "sheep.wav"), load_audio(EXAMPLES / "dog.ogg")
    soundfile.write(folder / "low rate.flac", sheep.samples[0, ::4], sheep.sampling_rate // 4)
    night = np.random.default_rng(0).normal(0, 1e-3, 30 * dog.sampling_rate).astype(np.float32)
    night[20 * dog.sampling_rate :][: dog.samples.shape[1]] += dog.samples.mean(axis=0)
    soundfile.write(folder / "night.wav", night, dog.sampling_rate)
    (folder / "broken.mp3").write_bytes(b"no sound")
    return folder


def embed(model: MSClapModel, processor: MSClapProcessor, path: Path) -> np.ndarray:
    sound = load_audio(path)
    with torch.inference_mode():
        features = processor(audio={"array": sound.samples, "sampling_rate": sound.sampling_rate})
        return model.get_audio_features(**features).pooler_output[0].numpy()


def test_drop_search_play_and_offline(embedded, site, sounds, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    with ExitStack() as running, chromium(tmp_path / "profile") as browser:
        served = running.enter_context(serve(site))

        def text(id: str) -> str:
            return browser.find_element(By.ID, id).text

        def wait(id: str, words: str) -> None:
            WebDriverWait(browser, 60, 0.1).until(
                lambda _: words in text(id), f"{id}: {text(id)!r}, expected {words!r}"
            )

        def run(script: str, *values: Any) -> Any:
            return browser.execute_async_script(f"(async () => {{{script}}})()", *values)

        browser.get(served.url)
        wait("status", "The model is ready.")

        # A folder dropped: its sounds are embedded as Python does it, and what is none of them is named.
        area = browser.find_element(By.ID, "drop").rect
        where = {"x": area["x"] + 20, "y": area["y"] + 20}
        data = {"items": [], "files": [str(sounds)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            browser.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "data": data, **where})
        wait("status", "7 sounds ready, 1 not read.")
        assert "broken.mp3: this browser cannot decode it" in text("problems")
        assert "1 file left out: no sound by name." in text("problems")
        vectors = run("arguments[0](clapHf.sounds.map(({name, vector}) => [name, [...vector]]))")
        paths = {path.name: path for path in sounds.rglob("*.*")}
        assert len(vectors) == 7
        for name, vector in vectors:
            assert np.dot(vector, embed(*embedded, paths[Path(name).name])) > 0.999, name
        words = ["a dog barks", "UN CAFÉ ☕ naïve", "word " * 100]
        with torch.inference_mode():
            expected = embedded[0].get_text_features(**embedded[1](text=words)).pooler_output.numpy()
        found = run("clapHf.embedTexts(arguments[0]).then((all) => arguments[1](all.map((one) => [...one])))", words)
        assert (np.asarray(found) * expected).sum(axis=1).min() > 0.99

        # Probabilities are Python's, as near as the vectors are.
        script = """const known = clapHf.calibration();
        arguments[1](clapHf.sounds.map(({vector}) => arguments[0].map((text) => known.probability(vector, text))));"""
        probabilities = np.asarray(run(script, found))
        audio = np.stack([embed(*embedded, paths[Path(name).name]) for name, _ in vectors])
        assert np.abs(probabilities - CALIBRATION.probabilities(audio, expected)).max() < 0.05

        # Labels of every sound; the timeline of the long one has the dog, and the arrows walk on it.
        browser.find_element(By.ID, "labels").clear()
        browser.find_element(By.ID, "labels").send_keys("dog barking, white noise, thunder, music, breaking glass")
        browser.find_element(By.CSS_SELECTOR, "#labels-form button").click()
        wait("labels-status", "7 sounds labelled.")
        rows = {
            row.find_element(By.TAG_NAME, "th").text: row for row in browser.find_elements(By.CSS_SELECTOR, "tbody tr")
        }
        for name, label in {
            "dog.ogg": "dog barking",
            "glass_break.ogg": "breaking glass",
            "music.mp3": "music",
        }.items():
            assert rows[name].find_element(By.TAG_NAME, "li").text.startswith(label)
        parts = rows["night.wav"].find_elements(By.CSS_SELECTOR, ".timeline button")
        [bark] = [part for part in parts if "dog barking" in part.get_attribute("aria-label")]
        assert bark.get_attribute("aria-label").startswith("Play 0:18 to 0:21")
        parts[0].send_keys(Keys.ARROW_RIGHT)
        assert browser.switch_to.active_element == parts[1]

        # Words find the second of the long one, and it plays from there.
        browser.find_element(By.ID, "query").send_keys("a dog barks", Keys.ENTER)
        wait("search-status", "results for “a dog barks”")
        hits = browser.find_elements(By.CSS_SELECTOR, "#hits li")
        assert {hit.find_element(By.CLASS_NAME, "name").text.split("/")[-1] for hit in hits[:2]} == {
            "dog.ogg",
            "night.wav",
        }
        [night] = [hit for hit in hits[:2] if "night.wav" in hit.text]
        assert "at 0:18" in night.text
        night.find_element(By.TAG_NAME, "button").click()
        playing = (
            "const {paused, currentTime, src} = document.getElementById('audio'); return [paused, currentTime, src]"
        )
        WebDriverWait(browser, 10, 0.1).until(lambda _: browser.execute_script(playing)[1] > 19.0)
        paused, second, source = browser.execute_script(playing)
        assert not paused and second < 22 and source.startswith("blob:") and text("playing") == "night.wav from 0:18"

        # Whether any hit matches is what Python says of the page's own vectors.
        windows = np.asarray(
            run("arguments[0](clapHf.sounds.flatMap((sound) => sound.vectors.map((one) => [...one])))")
        )
        for words in ("a violin", "a dog barks"):
            browser.find_element(By.ID, "query").clear()
            browser.find_element(By.ID, "query").send_keys(words, Keys.ENTER)
            wait("search-status", f"results for “{words}”")
            [query] = run(
                "clapHf.embedTexts([arguments[0]]).then((all) => arguments[1](all.map((one) => [...one])))", words
            )
            best = CALIBRATION.probabilities(windows, np.asarray([query])).max()
            matches = bool(best >= CALIBRATION.threshold(FALSE_ALARMS, len(windows)))
            assert ("None of them matches" in text("search-status")) is not matches, words

        # The microphone.
        browser.find_element(By.ID, "record").click()
        wait("record", "Stop")
        browser.execute_async_script("setTimeout(arguments[0], 1500)")
        browser.find_element(By.ID, "record").click()
        wait("status", "8 sounds ready.")
        assert "recording 1.wav" in text("table")

        # Nothing but the page's own files was asked for; without a server it works as before.
        assert {request.split()[0] for request in served.requests} == {"GET"}
        names = {request.split()[1].strip("/") or "index.html" for request in served.requests}
        assert names <= set(os.listdir(site))
        assert sum((site / name).stat().st_size for name in names) < 60e6
        running.close()
        browser.get(served.url)
        wait("status", "The model is ready.")
        browser.find_element(By.ID, "files").send_keys(str(sounds / "dog.ogg"))
        wait("status", "1 sound ready.")
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_slow_server_delays_the_page_but_it_is_kept_whole(site, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with ExitStack() as running, chromium(tmp_path / "profile") as browser:
        served = running.enter_context(serve(site, slow={"style.css": 5.0}))
        for visit in ("with the server", "without it"):
            browser.get(served.url)
            status = browser.find_element(By.ID, "status")
            WebDriverWait(browser, 60).until(lambda _, shown=status: shown.text == "The model is ready.", visit)
            running.close()


def test_a_model_that_does_not_load_is_an_error_in_words(site, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    broken = shutil.copytree(site, tmp_path / "site", ignore=shutil.ignore_patterns("text.onnx"))
    with serve(broken) as served, chromium(tmp_path / "profile") as browser:
        browser.get(served.url)
        failure = browser.find_element(By.ID, "failure")
        WebDriverWait(browser, 60).until(lambda _: failure.text)
        assert failure.text.startswith("The model could not be loaded: text.onnx: the server answered 404. ")
