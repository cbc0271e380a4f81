"""Captioning and audio-task models: prefixes, losses, generation, what trains, remote code, and learning by heart."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from clap_hf import (
    MSClapCaptioningConfig,
    MSClapConditionalGenerationConfig,
    MSClapForAudioCaptioning,
    MSClapForConditionalGeneration,
    MSClapModel,
    MSClapProcessor,
    embedded_checkpoint,
    load_audio,
)
from conftest import EXAMPLES, TINY_AUDIO, TINY_CNN14, TINY_GPT2, make_model, sound
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SMALL_GPT2 = {**TINY_GPT2, "vocab_size": 300, "bos_token_id": 299, "eos_token_id": 299}
SIZES = {"projection_dim": 24, "prefix_length": 6, "mapper_num_layers": 2, "mapper_num_heads": 4}


def captioner(seed=0, text=None, audio=None, **settings):
    """A tiny captioner whose captions depend on the clip."""
    config = MSClapCaptioningConfig(
        text_config=SMALL_GPT2 if text is None else text,
        audio_config=TINY_AUDIO if audio is None else audio,
        **{**SIZES, "mapper_input_length": 4, **settings},
    )
    return lively(MSClapForAudioCaptioning, config, seed)


def task_model(seed=0, **settings):
    config = MSClapConditionalGenerationConfig(
        text_config=SMALL_GPT2, audio_config=TINY_AUDIO, **{**SIZES, "mapper_input_length": 4, **settings}
    )
    return lively(MSClapForConditionalGeneration, config, seed)


def lively(model_class, config, seed):
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
        model.mapper.get_parameter("linear.weight" if config.mapper_type == "transformer" else "fc1.weight").mul_(10)
    return model


def captions(lengths=(5, 3, 7)):
    """Random ids with an end token, padded on the right with it, their mask and labels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((len(lengths), max(lengths)), 299)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, : length - 1] = torch.randint(0, 299, (length - 1,), generator=generator)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


@pytest.fixture
def clips(batch):
    return {name: batch[name] for name in ("input_features", "num_windows")}


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def train_a_little(model, inputs, steps=3):
    """Steps that would move whatever can be moved, in training mode."""
    before = snapshot(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    return {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


# Prefix and loss


def test_prefix_depends_on_the_clip_and_on_nothing_else(clips):
    model = captioner()
    with torch.no_grad():
        prefix = model.get_prefix(**clips)
        one = model.get_prefix(clips["input_features"][:1], clips["num_windows"][:1])
    assert prefix.shape == (3, 6, 32)
    assert (prefix[0] - prefix[2]).abs().max() > 0.1
    torch.testing.assert_close(prefix[:1], one)


@pytest.mark.parametrize("mapper_type", ["transformer", "mlp"])
def test_loss_is_that_of_the_language_model_on_the_caption_alone(clips, mapper_type):
    model = captioner(mapper_type=mapper_type)
    inputs = captions()
    with torch.no_grad():
        out = model(**clips, **inputs)
        prefix = model.get_prefix(**clips)
        whole = torch.cat([prefix, model.get_input_embeddings()(inputs["input_ids"])], dim=1)
        mask = torch.cat([torch.ones(3, 6, dtype=torch.long), inputs["attention_mask"]], dim=1)
        labels = torch.cat([torch.full((3, 6), -100), inputs["labels"]], dim=1)
        stock = model.language_model(inputs_embeds=whole, attention_mask=mask, labels=labels)
    torch.testing.assert_close(out.loss, stock.loss)
    torch.testing.assert_close(out.logits, stock.logits[:, 5:])
    by_hand = F.cross_entropy(out.logits[0, :5], inputs["input_ids"][0, :5], reduction="sum")
    by_hand += F.cross_entropy(out.logits[1, :3], inputs["input_ids"][1, :3], reduction="sum")
    by_hand += F.cross_entropy(out.logits[2, :7], inputs["input_ids"][2, :7], reduction="sum")
    torch.testing.assert_close(out.loss, by_hand / 15)


def test_padding_changes_nothing(clips):
    model = captioner()
    inputs = captions((5, 5, 5))
    padded = {
        "input_ids": F.pad(inputs["input_ids"], (0, 4), value=7),
        "attention_mask": F.pad(inputs["attention_mask"], (0, 4)),
        "labels": F.pad(inputs["labels"], (0, 4), value=-100),
    }
    with torch.no_grad():
        short, long = model(**clips, **inputs), model(**clips, **padded)
    torch.testing.assert_close(short.loss, long.loss)
    torch.testing.assert_close(short.logits[:, :5], long.logits[:, :5])


# What trains


@pytest.mark.parametrize("audio", [TINY_AUDIO, TINY_CNN14], ids=["htsat", "cnn14"])
def test_only_the_mapper_trains(clips, audio):
    """All else, batch norms included, stays bit-identical, also after loading."""
    assert train_a_little(captioner(audio=audio), {**clips, **captions()}) == {"mapper"}


def test_what_is_frozen_can_be_chosen(clips, tmp_path):
    model = captioner(freeze_audio=False, freeze_language_model=False)
    moved = train_a_little(model, {**clips, **captions()})
    assert moved == {"mapper", "audio_model", "audio_projection", "language_model"}
    captioner().save_pretrained(tmp_path)
    loaded = MSClapForAudioCaptioning.from_pretrained(tmp_path)
    assert train_a_little(loaded, {**clips, **captions()}) == {"mapper"}
    loaded, info = MSClapForAudioCaptioning.from_pretrained(tmp_path, output_loading_info=True, freeze_audio=False)
    assert not info["missing_keys"]
    assert train_a_little(loaded, {**clips, **captions()}) == {"mapper", "audio_model", "audio_projection"}


def test_frozen_parts_do_not_drop_out(clips):
    model = captioner().train()
    with torch.no_grad():
        first, second = (model.get_audio_features(**clips).pooler_output for _ in range(2))
        assert torch.equal(first, second)
    assert model.mapper.training and not model.audio_model.training and not model.language_model.training


def test_trains_through_gradient_checkpointing(clips):
    inputs = {**clips, **captions()}
    plain, checkpointed = captioner(), captioner()
    checkpointed.gradient_checkpointing_enable()
    gradients = []
    for model in (plain, checkpointed):
        model.train()
        model(**inputs).loss.backward()
        gradients.append(model.mapper.linear.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


# Generation


@torch.no_grad()
def greedy_by_hand(model, clips, steps):
    """Without cache: the likeliest token, again and again; -1 after the end token."""
    ids = torch.empty(3, 0, dtype=torch.long)
    for _ in range(steps):
        logits = model(**clips, input_ids=ids if ids.shape[1] else None).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return ids


def test_greedy_generation(clips):
    model = captioner()
    expected = greedy_by_hand(model, clips, 9)
    assert len({tuple(row) for row in expected.tolist()}) > 1
    model.generation_config.eos_token_id = None
    assert torch.equal(model.generate(**clips, num_beams=1, max_new_tokens=9), expected)
    # An end token stops its own caption alone.
    end = int(expected[0, 3])
    model.generation_config.eos_token_id = end
    tokens = model.generate(**clips, num_beams=1, max_new_tokens=9)
    for row, full in zip(tokens.tolist(), expected.tolist(), strict=True):
        stop = full.index(end) + 1 if end in full else 9
        assert row[:stop] == full[:stop] and set(row[stop:]) <= {299}


@pytest.mark.parametrize("beam_scores", ["sum", "average"])
def test_beam_search_finds_better_captions_than_greedy(clips, beam_scores):
    model = captioner(beam_scores=beam_scores)
    model.generation_config.eos_token_id = 298

    @torch.no_grad()
    def total(ids):
        log_probs = model(**clips, input_ids=ids).logits[:, :-1].log_softmax(dim=-1)
        return log_probs.gather(2, ids[..., None])[..., 0].sum(dim=1)

    beams = model.generate(**clips, max_new_tokens=6, min_new_tokens=6, num_beams=8)
    greedy = model.generate(**clips, max_new_tokens=6, min_new_tokens=6, num_beams=1)
    assert beams.shape == (3, 6)
    assert (total(beams) >= total(greedy) - 1e-4).all() and (total(beams) > total(greedy) + 1e-3).any()


def test_searches_agree_where_no_caption_ends(clips):
    """Of equal lengths, sums and averages rank alike."""
    model = captioner()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "num_return_sequences": 3}
    by_sum = model.generate(**clips, **options)
    model.config.beam_scores = "average"
    assert torch.equal(model.generate(**clips, **options), by_sum)


def test_generate_takes_what_transformers_takes(clips):
    model = captioner()
    model.config.beam_scores = "average"
    banned = model.generate(**clips, max_new_tokens=6, bad_words_ids=[[i] for i in range(250)])
    assert banned.min() >= 250
    torch.manual_seed(0)
    sampled = model.generate(**clips, max_new_tokens=6, do_sample=True, num_beams=1, num_return_sequences=2)
    assert sampled.shape[0] == 6
    scores = model.generate(**clips, max_new_tokens=3, num_beams=1, return_dict_in_generate=True, output_logits=True)
    with torch.no_grad():
        torch.testing.assert_close(scores.logits[0], model(**clips).logits[:, 0])
    assert model.generation_config.num_beams == 5, "a call leaves the model's settings alone"


def test_another_language_model(clips):
    llama = AutoConfig.for_model(
        "llama",
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = captioner(text=llama.to_dict(), beam_scores="average")
    assert model.generate(**clips, max_new_tokens=4, num_beams=3).shape == (3, 4)
    assert train_a_little(model, {**clips, **captions()}) == {"mapper"}


# Putting together, saving, configuration


def test_from_clap(clips, tmp_path):
    clap = make_model()
    torch.manual_seed(1)
    language_model = AutoModelForCausalLM.from_config(GPT2Config(**{**SMALL_GPT2, "n_embd": 48}))
    made = MSClapForAudioCaptioning.from_clap(
        clap, language_model, prefix_length=5, mapper_num_layers=1, mapper_input_length=2
    ).eval()
    with torch.no_grad():
        expected = clap.get_audio_features(**clips).pooler_output
        assert torch.equal(made.get_audio_features(**clips).pooler_output, expected)
        words = torch.tensor([[1, 2, 3]])
        assert torch.equal(made.language_model(words).logits, language_model.eval()(words).logits)
    assert made.get_prefix(**clips).shape == (3, 5, 48)
    assert {name.split(".")[0] for name, value in made.named_parameters() if value.requires_grad} == {"mapper"}


def test_saving(clips, tmp_path):
    model = captioner(beam_scores="average")
    model.generation_config.num_beams = 3
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    assert type(loaded) is MSClapForAudioCaptioning and loaded.generation_config.num_beams == 3
    inputs = {**clips, **captions()}
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert torch.equal(loaded.generate(**clips, max_new_tokens=5), model.generate(**clips, max_new_tokens=5))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mapper_type": "lstm"}, "mapper_type is 'lstm', expected one of"),
        ({"beam_scores": "product"}, "beam_scores is 'product', expected one of"),
        ({"mapper_num_heads": 5}, "mapper_num_heads is 5, which does not divide"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(Exception, match=message):
        MSClapCaptioningConfig(text_config=SMALL_GPT2, audio_config=TINY_AUDIO, **settings)


# Audio tasks


def prompts(lengths=(4, 2, 3)):
    made = captions(lengths)
    return {"prompt_ids": made["input_ids"], "prompt_mask": made["attention_mask"]}


def test_audio_and_prompt_both_stand_before_the_answer(clips):
    """Eq. 5: 2k vectors, the first k of the audio, the others of the prompt."""
    model = task_model()
    with torch.no_grad():
        prefix = model.get_prefix(**clips, **prompts())
        turned = model.get_prefix(**clips, **{name: value.flip(0) for name, value in prompts().items()})
        other = model.get_prefix(clips["input_features"][[2, 1, 0]], **prompts())
        padded = model.get_prefix(**clips, **{name: F.pad(value, (0, 3)) for name, value in prompts().items()})
    assert prefix.shape == (3, 12, 32)
    torch.testing.assert_close(prefix[:, :6], turned[:, :6])
    torch.testing.assert_close(prefix[0, 6:], turned[2, 6:])
    assert (prefix[0, 6:] - prefix[2, 6:]).abs().max() > 0.05
    torch.testing.assert_close(prefix[:, 6:], other[:, 6:])
    torch.testing.assert_close(prefix, padded, msg="padding of prompts changes nothing")


def test_audio_tower_trains_and_the_language_model_does_not(clips, tmp_path):
    inputs = {**clips, **prompts(), **captions()}
    expected = {"audio_model", "audio_projection", "mapper", "prompt_mapper"}
    model = task_model()
    assert train_a_little(model, inputs) == expected
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    assert type(loaded) is MSClapForConditionalGeneration
    answer = {"num_beams": 2, "max_new_tokens": 4}
    assert torch.equal(loaded.generate(**clips, **prompts(), **answer), model.generate(**clips, **prompts(), **answer))
    assert train_a_little(loaded, inputs) == expected
    whole = task_model(freeze_language_model=False, freeze_audio=True)
    assert train_a_little(whole, inputs) == {"language_model", "mapper", "prompt_mapper"}


def test_prompts_need_a_transformer():
    with pytest.raises(Exception, match="mapper_type is 'mlp', expected 'transformer'"):
        task_model(mapper_type="mlp")


# Remote code

WITHOUT_PACKAGE = """
import sys
sys.modules["clap_hf"] = sys.modules["torchaudio"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM, AutoProcessor
torch.set_num_threads(1)
folder, tasks_folder, inputs, outputs = sys.argv[1:]
inputs = load_file(inputs)
clip = inputs.pop("clip").numpy()
model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)
tasks = AutoModelForMultimodalLM.from_pretrained(tasks_folder, trust_remote_code=True)
assert all(type(loaded).__module__.startswith("transformers_modules.") for loaded in (model, tasks))
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
made = processor(audio=clip, sampling_rate=16_000)
prompts = {"prompt_ids": inputs["prompt_ids"], "prompt_mask": inputs["prompt_mask"]}
results = {
    "tokens": model.generate(**made, max_new_tokens=5),
    "answers": tasks.generate(**made, **prompts, max_new_tokens=5, num_beams=2),
    "frozen": torch.tensor([not any(p.requires_grad for p in model.language_model.parameters())]),
}
save_file(results, outputs)
"""


def test_captioners_load_without_the_package(tmp_path, processor):
    model, tasks = captioner(text=TINY_GPT2, beam_scores="average"), task_model()
    model.save_pretrained(tmp_path / "captioner")
    processor.save_pretrained(tmp_path / "captioner")
    tasks.save_pretrained(tmp_path / "tasks")
    clip = torch.from_numpy(sound(1.7))
    prompt = {name: value[:1].contiguous() for name, value in prompts().items()}
    save_file({"clip": clip, **prompt}, tmp_path / "in.safetensors")
    paths = [str(tmp_path / name) for name in ("captioner", "tasks", "in.safetensors", "out.safetensors")]
    result = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_PACKAGE, *paths],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    out = load_file(tmp_path / "out.safetensors")
    made = AutoProcessor.from_pretrained(tmp_path / "captioner")(audio=clip, sampling_rate=16_000)
    assert torch.equal(out["tokens"], model.generate(**made, max_new_tokens=5))
    assert torch.equal(out["answers"], tasks.generate(**made, **prompt, max_new_tokens=5, num_beams=2))
    assert out["frozen"].item()


# Learning by heart


def word_tokenizer(texts):
    """A tokenizer of these texts' words, which ends every text like CLAP's do."""
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["<end>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", padding_side="right", model_max_length=30
    )


@pytest.mark.slow
def test_the_mapper_alone_learns_captions_by_heart():
    """32 real clips, a frozen audio tower that hears, a frozen language model that knows the words in any order."""
    clap = MSClapModel.from_pretrained(embedded_checkpoint()).eval()
    extract = MSClapProcessor.from_pretrained(embedded_checkpoint()).feature_extractor
    places = ("at the beginning", "in the middle, loud or not", "close to the very end")
    clips, texts = [], []
    for path in sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".mp3", ".wav", ".flac", ".ogg")):
        audio = load_audio(path)
        part = audio.samples.shape[1] // 3
        for i, place in enumerate(places):
            clips.append({"array": audio.samples[:, i * part :][:, :part], "sampling_rate": audio.sampling_rate})
            texts.append(f"a recording of {path.stem.replace('_', ' ')} {place}")
    clips, texts = clips[:32], texts[:32]
    tokenizer = word_tokenizer(texts)
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    labels = ids.masked_fill(mask == 0, -100)

    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(**sizes, **no_dropout, bos_token_id=0, eos_token_id=0, initializer_range=0.1)
    language_model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(language_model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        language_model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()

    model = MSClapForAudioCaptioning.from_clap(
        clap, language_model, prefix_length=8, mapper_input_length=8, mapper_num_layers=2
    ).train()
    before = snapshot(model)
    features = extract(clips)
    with torch.no_grad():
        embeds = model.get_audio_features(**features).pooler_output[:, None]  # frozen, so once is enough
    optimizer = torch.optim.AdamW(model.mapper.parameters(), lr=2e-3)
    losses = []
    for _ in range(260):
        optimizer.zero_grad()
        loss = model.continue_prefix(model.mapper(embeds), ids, mask, labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.mapper.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    written = model.eval().generate(**features, num_beams=1, max_new_tokens=20)
    assert tokenizer.batch_decode(written, skip_special_tokens=True) == texts, losses[::20]
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if not name.startswith("mapper."))
