"""Pictures of the page for docs/web.md: sounds with their timelines, a search, and a narrow screen.

python web/screenshots.py build/web docs/web
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch

from clap_hf import load_audio
from clap_hf.audio import AUDIO_EXTENSIONS
from clap_hf.model.feature_extraction_msclap import resample, to_mono

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from web.browser import chromium, serve  # noqa: E402

EXAMPLES = ROOT / "examples"
RATE = 44_100  # Hz
WALK = ("stream", "bird", "stream", "dog", "stream", "thunder", "fire", "sheep", "music")  # one after the other
SHOWN = ("bird.wav", "dog.ogg", "fire.ogg", "music.mp3", "thunder.ogg", "stream.ogg")


def walk() -> np.ndarray:
    """A recording of several places `[samples]`, made of the examples; short ones are repeated."""
    parts = []
    for name in WALK:
        [path] = [path for path in EXAMPLES.glob(f"{name}.*") if path.suffix in AUDIO_EXTENSIONS]
        sound = load_audio(path)
        samples = resample(to_mono(sound.samples, name), sound.sampling_rate, RATE).numpy()
        parts.append(np.resize(samples, max(len(samples), 6 * RATE)))
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="What `make web` built.")
    parser.add_argument("output", type=Path, help="Folder for the pictures.")
    options = parser.parse_args()

    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, serve(options.site) as served:
        sounds = Path(temporary, "sounds")
        sounds.mkdir()
        soundfile.write(sounds / "walk.wav", walk(), RATE)
        for name in SHOWN:
            shutil.copy(EXAMPLES / name, sounds)
        with chromium(Path(temporary, "profile"), width=960, height=1120) as browser:

            def wait(id: str, words: str) -> None:
                WebDriverWait(browser, 120).until(lambda _: words in browser.find_element(By.ID, id).text)

            browser.get(served.url)
            wait("status", "ready")
            browser.find_element(By.ID, "files").send_keys("\n".join(str(path) for path in sorted(sounds.iterdir())))
            wait("status", f"{len(SHOWN) + 1} sounds ready")
            browser.find_element(By.ID, "query").send_keys("a dog barks", Keys.ENTER)
            wait("search-status", "results for")
            browser.save_screenshot(str(options.output / "page.png"))
            section = browser.find_element(By.CSS_SELECTOR, "section:last-of-type")
            clip = {**section.rect, "scale": 1}
            found = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
            (options.output / "timeline.png").write_bytes(base64.b64decode(found["data"]))
            browser.set_window_size(420, 900)
            browser.execute_script("document.getElementById('labels-heading').scrollIntoView()")
            browser.save_screenshot(str(options.output / "narrow.png"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
