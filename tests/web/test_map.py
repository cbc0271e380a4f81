"""The map of a collection in a browser, from a file: points are named, and play their sounds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from web.browser import chromium, missing

from clap_hf.cli import app
from clap_hf.search.map import project
from conftest import EXAMPLES

OFFLINE = ("--host-resolver-rules=MAP * ~NOTFOUND",)
no_browser = missing(("chromium", "chromedriver"))
PLACES = """
const { left, top } = document.getElementById("map").getBoundingClientRect();
const middle = ([x, y]) => [x + left, y + top];
return Object.fromEntries(sounds.map((sound) => [sound.name, middle(place(sound))]));
"""


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """Sounds in folders with names that HTML and addresses would take for something else."""
    folder = tmp_path_factory.mktemp("map")
    for place, names in {
        "animals & <i>": ("dog.ogg", "bird.wav"),
        "weather #1": ("thunder.ogg", "stream.ogg"),
    }.items():
        (folder / "sounds" / place).mkdir(parents=True)
        for name in names:
            shutil.copy(EXAMPLES / name, folder / "sounds" / place / name)
    shutil.copy(EXAMPLES / "fire.ogg", folder / "sounds" / "100%_<script>?.ogg")
    embed = ["embed", str(folder / "sounds"), "--output", str(folder / "index"), "--tag", "mine"]
    assert CliRunner().invoke(app, embed).exit_code == 0
    return folder / "index"


def test_vectors_that_are_alike_are_close():
    centers = np.random.default_rng(0).normal(size=(3, 24))
    vectors = np.repeat(centers, 5, axis=0) + 0.05 * np.random.default_rng(1).normal(size=(15, 24))
    places = project(vectors, "pca")
    assert places.min(axis=0).tolist() == [0, 0] and places.max(axis=0).tolist() == [1, 1]
    groups = places.reshape(3, 5, 2)
    within = np.ptp(groups, axis=1).max()
    apart = min(np.linalg.norm(groups[a].mean(axis=0) - groups[b].mean(axis=0)) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert within < 0.2 < apart
    np.testing.assert_allclose(project(vectors[::-1], "pca")[::-1], places, atol=1e-6)


@pytest.mark.filterwarnings("error:n_jobs")
def test_umap_is_the_default_where_it_is_installed():
    pytest.importorskip("umap")
    centers = np.random.default_rng(0).normal(size=(2, 24))
    vectors = np.repeat(centers, 12, axis=0) + 0.05 * np.random.default_rng(1).normal(size=(24, 24))
    places = project(vectors)
    np.testing.assert_array_equal(project(vectors, "umap"), places)
    one, other = places[:12], places[12:]
    assert np.ptp(one, axis=0).max() < np.linalg.norm(one.mean(axis=0) - other.mean(axis=0))
    assert np.abs(places - project(vectors, "pca")).max() > 0.01


def test_what_the_file_holds(collection, tmp_path):
    def run(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["map", str(collection), "--output", str(tmp_path / "map.html"), *options])
        return result.exit_code, result.output

    assert run("--method", "pca")[0] == 0
    page = (tmp_path / "map.html").read_text()
    assert page.count("</script>") == 2 and "http" not in page and "{{" not in page
    assert "weather%20%231/thunder.ogg" in page and '"animals &' not in page.partition('id="data"')[0]
    size = len(page)
    assert run("--method", "pca", "--clips", "1", "--color", "tag")[0] == 0
    page = (tmp_path / "map.html").read_text()
    assert len(page) > size + 10_000 and page.count("data:audio/ogg;base64,") == 5 and '"groups": ["mine"]' in page
    for options in (("--method", "tsne"), ("--color", "size")):
        code, output = run(*options)
        assert code == 2 and "expected one of" in output and output.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(no_browser is not None, reason=str(no_browser))
@pytest.mark.parametrize("clips", [(), ("--clips", "1")], ids=["files", "clips"])
def test_a_point_plays_its_sound(collection, tmp_path, clips):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    output = collection.parent / "map.html"
    command = ["map", str(collection), "--output", str(output), "--method", "pca", *clips]
    assert CliRunner().invoke(app, command).exit_code == 0
    with chromium(tmp_path / "profile", width=1000, height=700, flags=OFFLINE) as browser:
        browser.get(output.as_uri())
        places = browser.execute_script(PLACES)
        assert len(places) == 5
        for name, (x, y) in places.items():
            mouse = ActionChains(browser)
            mouse.w3c_actions.pointer_action.move_to_location(round(x), round(y))
            mouse.perform()
            assert browser.find_element(By.ID, "tip").text == name
            ActionChains(browser).click().perform()
            audio = browser.find_element(By.ID, "audio")
            WebDriverWait(browser, 10, 0.1).until(lambda _, audio=audio: float(audio.get_property("currentTime")) > 0)
            assert browser.find_element(By.ID, "playing").text == name
        folder = browser.find_element(By.XPATH, "//li/button[contains(., 'weather #1 (2)')]")
        folder.click()
        assert folder.get_attribute("aria-pressed") == "false"
        [x, y] = next(at for name, at in places.items() if "thunder" in name)
        mouse = ActionChains(browser)
        mouse.w3c_actions.pointer_action.move_to_location(round(x), round(y))
        mouse.perform()
        assert browser.find_element(By.ID, "tip").text == ""
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
