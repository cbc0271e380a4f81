"""The page of `clap-hf demo` in a browser, what it refuses, and the folder for a Space."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import yaml
from PIL import Image
from typer.testing import CliRunner
from web.browser import chromium, missing

from clap_hf import load_audio
from clap_hf.cli import app
from clap_hf.cli.demo import load_demo
from clap_hf.demo import Demo, excerpt, serve
from conftest import EXAMPLES, make_model

OFFLINE = ("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",)
PICTURES = os.environ.get("CLAP_HF_PICTURES")  # folder that gets screenshots
needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
no_browser = missing(("chromium", "chromedriver"))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """Recordings, half a minute of quiet noise in which a dog barks after 20 s, and a walk past several sounds."""
    folder = tmp_path_factory.mktemp("demo") / "sounds"
    folder.mkdir()
    for name in ("dog.ogg", "bird.wav", "thunder.ogg", "music.mp3", "glass_break.ogg"):
        (folder / name).write_bytes((EXAMPLES / name).read_bytes())
    dog = load_audio(EXAMPLES / "dog.ogg")
    night = np.random.default_rng(0).normal(0, 1e-3, 30 * dog.sampling_rate).astype(np.float32)
    night[20 * dog.sampling_rate :][: dog.samples.shape[1]] += dog.samples.mean(axis=0)
    soundfile.write(folder / "night.flac", night, dog.sampling_rate)
    walk = []
    for name in ("stream.ogg", "thunder.ogg", "fire.ogg", "applause.mp3", "music.mp3"):
        part = load_audio(EXAMPLES / name, duration_s=8.0)
        walk.append(soxr.resample(part.samples.mean(axis=0), part.sampling_rate, 32_000))
    soundfile.write(folder / "walk.ogg", np.concatenate(walk), 32_000)  # thunder from 6 to 14 s
    return folder


@pytest.fixture(scope="module")
def demo(sounds) -> Demo:
    index = sounds.parent / "index"
    result = CliRunner().invoke(app, ["embed", str(sounds), "--output", str(index), "--hop", "1"])
    assert result.exit_code == 0, result.output
    return load_demo(collection=index, max_mb=1, max_s=40.0, device="cpu")


@pytest.fixture(scope="module")
def address(demo) -> Iterator[str]:
    page = serve(demo, wait=False)
    yield page.local_url
    page.close()


def status(url: str, sent: Any = None) -> int:
    """Status that a server answers with."""
    data = None if sent is None else json.dumps(sent).encode()
    headers = {} if sent is None else {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@needs_gradio
@pytest.mark.slow
@pytest.mark.skipif(no_browser is not None, reason=str(no_browser))
def test_the_page(address, demo, sounds, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    with chromium(tmp_path / "profile", width=1100, height=900, flags=OFFLINE) as browser:

        def text(selector: str) -> str:
            return " ".join(found.text for found in browser.find_elements(By.CSS_SELECTOR, selector))

        def wait(what: Callable[[], Any]) -> None:
            WebDriverWait(browser, 60, 0.1).until(lambda _: what())

        def shown(path: str) -> Any:
            wait(lambda: [found for found in browser.find_elements(By.XPATH, path) if found.is_displayed()])
            return next(found for found in browser.find_elements(By.XPATH, path) if found.is_displayed())

        def press(name: str) -> None:
            shown(f"//button[contains(@class, 'primary')][normalize-space()='{name}']").click()

        def tab(name: str) -> None:
            shown(f"//button[@role='tab'][normalize-space()='{name}']").click()

        def upload(name: str, file: Path) -> None:
            for remove in browser.find_elements(By.CSS_SELECTOR, f"#{name}-sound button[aria-label='Clear']"):
                remove.click()
            wait(lambda: browser.find_elements(By.CSS_SELECTOR, f"#{name}-sound input[type=file]"))
            browser.find_element(By.CSS_SELECTOR, f"#{name}-sound input[type=file]").send_keys(str(file))

        def picture(name: str, selector: str = "h1") -> None:
            if PICTURES:
                browser.execute_script(
                    "document.querySelector(arguments[0]).scrollIntoView();"
                    "if (arguments[1]) document.querySelectorAll('.toast-close').forEach((button) => button.click());",
                    selector,
                    name != "refused",
                )
                browser.execute_async_script("setTimeout(arguments[0], 1500)")
                image = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
                image.quantize(96, dither=Image.Dither.NONE).save(Path(PICTURES, f"{name}.png"), optimize=True)

        browser.get(address)
        wait(lambda: browser.find_elements(By.CSS_SELECTOR, "#classify-sound input[type=file]"))
        press("Classify")
        wait(lambda: "There is no sound yet" in text(".toast-body"))
        upload("classify", sounds / "dog.ogg")
        wait(lambda: "0:00" in text("#classify-sound"))
        press("Classify")
        wait(lambda: text("#answer h2") == "dog")
        assert "100%" in text("#classify-labels") and "dog" in text("#classify-labels")
        picture("classify")
        words = shown("//textarea")
        words.clear()
        words.send_keys("violin, rain, speech")
        press("Classify")
        wait(lambda: text("#answer h2") == "none of these")

        tab("Search")
        shown("//label[contains(., 'look for')]//*[self::textarea or self::input]").send_keys(
            "a dog barks", Keys.ENTER
        )
        wait(lambda: "The closest of 7 sounds" in text("#verdict"))
        shown("//div[@id='search-table']//*[text()='night.flac']").click()
        wait(lambda: "night.flac from 00:" in text("#search-player"))
        [hit] = [hit for hit in demo.collection.search("a dog barks") if hit.file.name == "night.flac"]
        assert hit.start_s <= 20 < hit.end_s and f"from 00:{hit.start_s:04.1f}" in text("#search-player")
        played = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        wait(lambda: any("audio.wav" in name for name in browser.execute_script(played)))
        [source] = {name for name in browser.execute_script(played) if "audio.wav" in name}
        with urllib.request.urlopen(source) as answer:
            samples, rate = soundfile.read(io.BytesIO(answer.read()), dtype="float32")
        night = load_audio(sounds / "night.flac")
        first = round(hit.start_s * rate)
        np.testing.assert_allclose(samples, night.samples[0, first : first + len(samples)], atol=1e-4)
        wait(lambda: "0:01" in text("#search-player"))  # it plays by itself
        picture("search")
        box = shown("//label[contains(., 'look for')]//*[self::textarea or self::input]")
        box.clear()
        box.send_keys("a church organ", Keys.ENTER)
        wait(lambda: "Nothing in this collection matches." in text("#verdict"))

        tab("Timeline")
        upload("timeline", sounds / "walk.ogg")
        wait(lambda: "0:32" in text("#timeline-sound"))
        press("Find them")
        wait(lambda: browser.find_elements(By.CSS_SELECTOR, "#timeline-plot img"))
        image = browser.find_element(By.CSS_SELECTOR, "#timeline-plot img")
        wait(lambda: browser.execute_script("return arguments[0].naturalWidth", image) > 1000)
        shown("//div[@id='timeline-table']//*[text()='thunder']").click()
        wait(lambda: "thunder from 00:00:" in text("#timeline-player"))
        picture("timeline", "#timeline-plot")

        long = tmp_path / "long.ogg"
        soundfile.write(long, np.random.default_rng(0).normal(0, 0.01, 8_000 * 50), 8_000)
        upload("timeline", long)
        wait(lambda: "0:50" in text("#timeline-sound"))
        press("Find them")
        wait(lambda: "long.ogg is 00:50 long, expected at most 00:40" in text(".toast-body"))
        assert str(tmp_path) not in text(".toast-body")
        large = tmp_path / "large.wav"
        soundfile.write(large, np.zeros(600_000), 44_100)
        tab("Classify")
        upload("classify", large)
        wait(lambda: "size" in text(".toast-body").lower())
        picture("refused")
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@needs_gradio
def test_nothing_is_fetched_and_no_other_file_is_served(address, sounds):
    assert status(address) == 200
    secret = sounds.parent / "secret.wav"
    secret.write_bytes(b"x")
    for file in (sounds / "dog.ogg", secret, Path(__file__), Path("/etc/passwd")):
        assert status(f"{address}gradio_api/file={file}") in (403, 404)
    assert status(f"{address}gradio_api/file={address}") == 403
    for path in (address, "HTTP://example.invalid/dog.wav"):
        payload = {"path": path, "meta": {"_type": "gradio.FileData"}}
        sent = {"data": [payload, "dog"], "fn_index": 0, "session_hash": "x"}
        assert status(f"{address}gradio_api/queue/join", sent) == 403
    local = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    assert status(f"{address}gradio_api/run/predict", {"data": [local, "dog"], "fn_index": 0}) >= 400


@needs_gradio
@pytest.mark.slow
def test_the_folder_of_a_space_serves_the_page(tmp_path):
    space = tmp_path / "space"
    result = CliRunner().invoke(app, ["demo", "--space", str(space), "--max-mb", "3"])
    assert result.exit_code == 0, result.output
    assert {path.name for path in space.iterdir()} == {"app.py", "requirements.txt", "README.md"}
    header = yaml.safe_load((space / "README.md").read_text().split("---\n")[1])
    assert header["sdk"] == "gradio" and header["app_file"] == "app.py" and header["license"] == "mit"
    assert (space / "requirements.txt").read_text().startswith("clap-hf[demo]==")
    environment = os.environ | {"GRADIO_SERVER_PORT": "7999", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "app.py"], cwd=space, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and "The page is at" in process.stdout.readline()
        assert status("http://127.0.0.1:7999/") == 200
        process.terminate()
    for refused in (
        ["demo", "--space", str(space)],
        ["demo", "--space", str(tmp_path / "other"), "--model", str(tmp_path)],
        ["demo", str(tmp_path), "--space", str(tmp_path / "other")],
    ):
        result = CliRunner().invoke(app, refused)
        assert result.exit_code == 2 and "expected" in result.output and result.output.count("\n") == 1


def test_what_is_over_the_limits_is_refused_in_words(demo, sounds, tmp_path):
    assert demo.check(str(sounds / "dog.ogg")) == str(sounds / "dog.ogg")
    with pytest.raises(ValueError, match="no sound yet"):
        demo.check(None)
    for seconds, rate, reason in ((50, 8_000, "00:50 long, expected at most 00:40"), (20, 44_100, "1.8 MB, expected")):
        soundfile.write(tmp_path / "it.wav", np.ones(seconds * rate), rate)
        with pytest.raises(ValueError, match=reason):
            demo.check(str(tmp_path / "it.wav"))
    soundfile.write(tmp_path / "it.wav", np.full(8_000, 0.5), 8_000)
    with pytest.raises(ValueError, match=r"it.wav is silent"):
        demo.check(str(tmp_path / "it.wav"))
    (tmp_path / "it.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"it.wav"):
        demo.check(str(tmp_path / "it.wav"))
    for labels, reason in (("", "is empty"), (",".join(map(str, range(101))), "101 labels, expected at most 100")):
        with pytest.raises(ValueError, match=reason):
            demo.classify(str(sounds / "dog.ogg"), labels)


def test_answers_and_excerpts(demo, sounds, processor):
    answer, shares = demo.classify(str(sounds / "dog.ogg"), "dog, rain\nviolin,dog")
    assert answer.startswith("## dog\n") and max(shares, key=shares.get) == "dog" and len(shares) == 3
    assert sum(shares.values()) == pytest.approx(1)
    assert demo.classify(str(sounds / "dog.ogg"), "rain, violin")[0].startswith("## none of these\n")
    text, rows, hits = demo.search("thunder")
    assert text.startswith("The closest of 7 sounds") and [row[1] for row in rows] == [hit.file.name for hit in hits]
    assert demo.search("a church organ")[0].startswith("**Nothing in this collection matches.**")
    picture, spans = demo.timeline(str(sounds / "walk.ogg"), "dog, thunder, fire")
    assert picture.width > 1000 and [span[3] for span in spans] == ["thunder", "fire"]
    assert "00:00:05" < spans[0][0] < "00:00:08" and "00:00:11" < spans[0][1] < "00:00:15"
    rate, samples = excerpt(sounds / "night.flac", 19.5)
    expected = load_audio(sounds / "night.flac", start_s=19.5).samples[0]
    np.testing.assert_allclose(samples / 32767, expected, atol=1e-4)
    uncalibrated = Demo(make_model(), processor)
    answer, shares = uncalibrated.classify(str(sounds / "dog.ogg"), "dog, rain")
    assert "among these labels" in answer and "probability" not in answer and set(shares) == {"dog", "rain"}
    described = Demo(make_model(), processor, captioner=lambda file: [{"generated_text": f"of {Path(file).name}"}])
    assert described.caption(str(sounds / "dog.ogg")) == "## of dog.ogg"
