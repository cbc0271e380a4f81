"""Cards of fine-tuned, adapted, captioning and converted models, line by line beside the records of their runs."""

import contextlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM

from clap_hf import MSClapModel
from clap_hf.cards import check_card, write_card
from clap_hf.convert import convert_checkpoint
from clap_hf.training.finetune import finetune
from clap_hf.training.recipe import load_recipe
from clap_hf.training.run import train_recipe
from clips import write_clips
from conftest import GPT2_TOKENIZER, make_config
from msclap_reference import TOKENIZER, official_state, random_clap

NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w])")
KINDS = ("fine-tuned", "adapted", "fine-tuned 2023", "captioner", "2023")
TUNED = KINDS[:3]
pytestmark = pytest.mark.slow
CAPTIONING = """
stage: captioning
name: described
sources: [{{dataset: {sounds}}}]
clap: {clap}
validation: {{dataset: {sounds}, split: train}}
validation_clips: 4
language_model:
  config: {{model_type: gpt2, vocab_size: 50257, n_layer: 1, n_embd: 16, n_head: 2, n_positions: 128}}
  tokenizer: {tokenizer}
model: {{prefix_length: 3, mapper_input_length: 2, mapper_num_layers: 1, mapper_num_heads: 2}}
batch_size: 8
steps: 2
steps_per_epoch: 1
learning_rate: 2.0e-3
"""


@dataclass(frozen=True)
class Carded:
    """A card, the records that it may rest on, and its model's folder."""

    text: str
    start: dict
    epochs: list[dict]
    base: dict
    model: Path

    @property
    def rows(self) -> dict[str, tuple[str, str]]:
        """Of its table of training: what stands for this model, and for the paper."""
        table = self.text.split("\n## Training\n")[1].strip().split("\n\n")[0]
        return {name: (own, paper) for name, own, paper in (line[2:-2].split(" | ") for line in table.split("\n")[2:])}


def read(card: Path, run: Path, model: Path) -> Carded:
    lines = [json.loads(line) for line in (run / "run.jsonl").read_text().splitlines()]
    base = json.loads((run / "base.json").read_text())
    return Carded(card.read_text(), lines[0], [line for line in lines if "epoch" in line], base, model)


@pytest.fixture(scope="module")
def cards(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("cards")
    sounds, small, official = folder / "sounds", folder / "small", folder / "CLAP_weights_2023.pth"
    write_clips(sounds, pieces=4, recordings=4, seconds=0.5)
    torch.manual_seed(0)
    MSClapModel(make_config()).save_pretrained(small)
    processor.save_pretrained(small)
    (small / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Small\n\n## Training data\n\nThree songs.\n")
    torch.save({"model": official_state(random_clap("2023", seed=7, small=True), "2023", "hub")}, official)
    convert_checkpoint("2023", folder / "2023", checkpoint=official, tokenizer=TOKENIZER["2023"], repo_id="acme/c")
    options = {"steps": 2, "num_workers": 0, "license": "cc0-1.0"}
    found = {}
    for kind, more in zip(
        TUNED,
        (
            {"model": str(small)},
            {"model": str(small), "lora": True},
            {"model": str(folder / "2023"), "freeze": "none"},
        ),
        strict=True,
    ):
        run = folder / kind.replace(" ", "-")
        with contextlib.redirect_stdout(io.StringIO()):
            finetune(str(sounds), run, **options, **more)
        found[kind] = read(run / "README.md", run, run / "best")
    recipe = folder / "captions.yaml"
    recipe.write_text(CAPTIONING.format(sounds=sounds, clap=small, tokenizer=GPT2_TOKENIZER))
    run = folder / "captions"
    with contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")  # no Java: METEOR and its like take 8 s an epoch
        train_recipe(load_recipe(recipe, None, {}), run, num_workers=0)
    write_card(run / "best", run, repo_id="acme/describes", license="mit")
    found["captioner"] = read(run / "README.md", run, run / "best")
    conversion = json.loads((folder / "2023" / "conversion.json").read_text())
    found["2023"] = Carded((folder / "2023" / "README.md").read_text(), conversion, [], {}, folder / "2023")
    return found


def numbers_of(value) -> set[float]:
    """Numbers of a record, those in its texts too."""
    if isinstance(value, dict):
        return set().union(*map(numbers_of, value.values()))
    if isinstance(value, list):
        return set().union(*map(numbers_of, value))
    if isinstance(value, str):
        return {float(number.replace(",", "")) for number in NUMBER.findall(value)}
    return {float(value)} if isinstance(value, (int, float)) and not isinstance(value, bool) else set()


def counted(card: Carded) -> set[float]:
    """Sizes of the model itself, in millions."""
    loader = (
        AutoModelForMultimodalLM if "captioning" in AutoConfig.from_pretrained(card.model).model_type else AutoModel
    )
    model = loader.from_pretrained(card.model)
    modules = (model, *model.children())
    return {sum(parameter.numel() for parameter in module.parameters()) / 1e6 for module in modules}


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_without_a_record(cards, kind):
    """Of the sentences and of what the tables have for this model; the paper's column and code aside."""
    card = cards[kind]
    text = re.sub(r"\A---\n.*?\n---\n|```.*?```|`[^`\n]*`|^#.*?$", "", card.text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(\| [^|\n]* \| [^|\n]* )\|[^|\n]*\|$", r"\1", text, flags=re.MULTILINE)  # three columns
    for aside in (
        r"<details>.*?</details>",
        r"Section [\d.]+",
        r"sha256 of the file \w+",
        r"How the authors.*?tasks\.",
    ):
        text = re.sub(aside, "", text, flags=re.DOTALL)
    files = ("config.json", "processor_config.json", "tokenizer_config.json")
    records = numbers_of([card.start, card.epochs, card.base])
    records |= numbers_of([json.loads((card.model / name).read_text()) for name in files]) | counted(card)
    seconds = sum(epoch["seconds"] for epoch in card.epochs)
    records |= {seconds, float(len(card.epochs)), 44.1, 44_100 / 32_000, 0.07, 20.0}  # 20 texts, the code's 0.07
    if card.epochs:
        records.add(card.epochs[-1]["step"] * card.start["recipe"]["batch_size"])
    for shown in NUMBER.findall(text):
        value, digits = float(shown.replace(",", "")), len(shown.partition(".")[2])
        near = [n for record in records for n in (record, 100 * record) if abs(n - value) <= 0.51 * 10**-digits]
        assert near, f"{kind}: {shown} is in no record"


@pytest.mark.parametrize("kind", TUNED)
def test_rows_of_fine_tuned_models(cards, kind):
    card, lora, official = cards[kind], kind == "adapted", kind == "fine-tuned 2023"
    recipe, data, rows = card.start["recipe"], card.start["data"], card.rows
    config = AutoConfig.from_pretrained(card.model)
    front_end = json.loads((card.model / "processor_config.json").read_text())["feature_extractor"]
    model = AutoModel.from_pretrained(card.model)
    audio, text = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (model.audio_model, model.text_model))
    steps = card.epochs[-1]["step"]
    adapted = ", adapters of rank 8" if lora else ""
    filters = " (designed for 32,000 Hz, so that they lie 1.38 times as high)" if official else ""
    assert (front_end["mel_sampling_rate"] == 32_000) is official
    assert {name: own for name, (own, _) in rows.items()} == {
        "weights from": "2023" if official else "small",
        "pairs": f"{data['pairs']} rows of sounds, {data['held_out']} more held out, 0 that could not be read",
        "audio tower": f"HTSAT, {audio:.1f} M parameters{adapted}",
        "text tower": f"gpt2, pretrained, {'trained' if official else 'frozen'}, pooled by last_token",
        "window": f"{front_end['duration_s']:g} s at {front_end['sampling_rate'] / 1000:g} kHz, "
        f"{front_end['feature_size']} mel bins up to {front_end['fmax']:,.0f} Hz{filters}, "
        f"hop {front_end['hop_length']}",
        "joint space": f"{config.projection_dim} dimensions",
        "temperature τ": f"{'kept at' if lora else 'learnt, from'} {card.base['temperature']:.3g}, the base's",
        "loss": "symmetric cross-entropy, pairs with equal texts are positives",
        "batch, steps": f"{recipe['batch_size']}, {steps} ({steps * recipe['batch_size']} clips seen)",
        "optimiser": f"AdamW, {recipe['learning_rate']:g}, warm-up and cosine",
        "time": f"{sum(e['seconds'] for e in card.epochs):.0f} s on {card.start['versions']['machine']}",
        "epoch kept": f"{card.epochs[-1]['epoch']} of {len(card.epochs)}, the last",
    }
    assert (recipe["lora"] is not None) is lora and recipe["best_metric"] == "step" and text > 0
    assert f"text tower gpt2 ({text:.1f} M parameters) in one {config.projection_dim}-dimensional space" in card.text
    assert rows["temperature τ"][1] == "learnt, from 0.007" and rows["window"][1].endswith("up to 8,000 Hz, hop 320")
    for name, after in card.epochs[-1]["validation"].items():
        before = card.start["before"]["validation"][name]
        assert f"| {name.replace('_', ' ')} | {before:.1%} | {after:.1%} |" in card.text
    meta = ModelCard(card.text).data
    assert (meta.license, meta.base_model) == ("cc0-1.0", "microsoft/msclap" if official else None)
    own_license, own_data = ("mit", "Microsoft's, as in the paper") if official else ("cc-by-4.0", "Three songs.")
    assert f"The model that was fine-tuned, {card.base['name']}, is under {own_license}." in card.text
    assert f"other data; its card: {own_data}" in card.text
    assert ("The adapters are merged into the weights" in card.text) is lora is (card.model / "adapter").is_dir()


def test_the_temperature_of_a_base_is_its_own(cards):
    for kind in TUNED:
        base = {"fine-tuned 2023": "2023"}.get(kind, "small")
        folder = cards["2023"].model.parent / base
        logit_scale = AutoModel.from_pretrained(folder).logit_scale
        assert cards[kind].base["temperature"] == pytest.approx(float(torch.exp(-logit_scale.detach())), rel=1e-6)


def test_rows_of_a_captioner(cards):
    card = cards["captioner"]
    recipe, model = card.start["recipe"], AutoModelForMultimodalLM.from_pretrained(card.model)
    audio, language = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (model.audio_model, model.language_model))
    kept = next(epoch for epoch in card.epochs if epoch.get("best"))
    own = {name: own for name, (own, _) in card.rows.items() if name != "window"}
    assert own == {
        "CLAP": "small",
        "clips": f"{card.start['data']['pairs']} rows of sounds, 0 that could not be read",
        "audio tower": f"HTSAT, {audio:.1f} M parameters",
        "mapper": "transformer, layers: 1, vectors: 3",
        "language model": "gpt2, from scratch",
        "learns": "the mapper; audio tower and language model frozen",
        "batch, steps": "8, 2 (16 clips seen)",
        "optimiser": f"AdamW, {recipe['learning_rate']:g}, warm-up and cosine",
        "time": f"{sum(e['seconds'] for e in card.epochs):.0f} s on {card.start['versions']['machine']}",
        "epoch kept": f"{kept['epoch']} of 2, by CIDEr-D on validation data",
    }
    paper = {name: paper for name, (_, paper) in card.rows.items() if paper != "not stated"}
    assert set(paper) == {"CLAP", "clips", "audio tower", "language model", "window", "learns"}  # Sections 2.3 and 3
    assert f"language model gpt2 ({language:.1f} M parameters)" in card.text
    assert "The CLAP whose audio tower it has, small, is under cc-by-4.0." in card.text
    assert (
        "The CLAP whose audio tower it has, small, had been trained on other data; its card: Three songs." in card.text
    )
    assert ModelCard(card.text).data.base_model is None  # what it stands on is a folder


def test_lines_of_a_converted_model(cards):
    card = cards["2023"]
    facts, text = card.start, " ".join(card.text.split())
    model = AutoModel.from_pretrained(card.model)
    for line in (
        "| mel filters | designed for 32,000 Hz, 50 to 14,000 Hz | 44,100 Hz, 50 to 8,000 Hz |",
        "| temperature τ at the start of training | 0.07, in the released code | 0.007 |",
        f"| temperature τ, learnt | {float(torch.exp(-model.logit_scale.detach())):.4f} | not stated |",
        f"20 unlike texts have a mean cosine of {facts['mean_text_cosine']}",
        f"sha256 of the file {facts['sha256']}",
        f"{facts['parameters'] / 1e6:.1f} M parameters in all",
        "64 mel bins from 50 to 14,000 Hz (designed for 32,000 Hz, so that they lie 1.38 times as high), hop 320",
        'but for texts with a "!" attached to a word',
        "no evaluation was run on this conversion",
    ):
        assert line in text, line
    meta = ModelCard(card.text).data
    assert (meta.base_model, meta.license) == ("microsoft/msclap", "mit")


@pytest.mark.parametrize("kind", KINDS)
def test_cards_name_no_path_and_claim_nothing_more(cards, kind):
    card = cards[kind]
    check_card(card.text, Path(kind))
    assert str(card.model.parent.parent) not in card.text and str(GPT2_TOKENIZER) not in card.text
    for claim in ("Speech is recognised", "one in ten"):
        assert claim not in card.text


def test_the_snippets_of_clap_hf_finetune_s_card_run_beside_it(cards, monkeypatch):
    card = cards["fine-tuned"]
    monkeypatch.chdir(card.model.parent)
    snippets = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(snippet, "card", "exec"), {"__name__": "card"})
        assert "'label': 'rain'" in output.getvalue()
