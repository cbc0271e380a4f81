"""What people do with a model they did not write: adapters, freezing, quantisation, autocast, tracing, Trainer."""

import copy
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModel, AutoModelForAudioClassification, Trainer, TrainingArguments, pipeline

from clap_hf import (
    MSClapAudioModel,
    MSClapCaptioningConfig,
    MSClapConditionalGenerationConfig,
    MSClapDataCollator,
    MSClapForAudioCaptioning,
    MSClapForAudioClassification,
    MSClapForConditionalGeneration,
    MSClapModel,
    MSClapTextModel,
)
from clap_hf.model.modeling_msclap import unpad_windows
from conftest import TINY_AUDIO, TINY_CNN14, TINY_GPT2, make_config, make_feature_extractor, make_model, sound

HALVES = [torch.bfloat16, torch.float16]
TOWERS = {"htsat": TINY_AUDIO, "cnn14": TINY_CNN14}
GENERATIVE = {
    "text_config": TINY_GPT2,
    "projection_dim": 24,
    "prefix_length": 4,
    "mapper_input_length": 4,
    "mapper_num_layers": 1,
    "mapper_num_heads": 4,
}


def classifier(audio):
    return MSClapForAudioClassification(make_config(audio=audio, num_labels=3))


def dual_encoder(audio):
    return MSClapModel(make_config(audio=audio))


def captioner(audio):
    return MSClapForAudioCaptioning(MSClapCaptioningConfig(audio_config=audio, **GENERATIVE))


def prompt_model(audio):
    return MSClapForConditionalGeneration(MSClapConditionalGenerationConfig(audio_config=audio, **GENERATIVE))


CLASSES = [classifier, dual_encoder, captioner, prompt_model]


@pytest.fixture(scope="module")
def clips():
    """Three clips of 1, 2 and 1 windows."""
    sounds = [sound(seconds, seed=i) for i, seconds in enumerate((0.7, 1.6, 1.0))]
    return dict(make_feature_extractor()(sounds, 16_000, return_tensors="pt"))


def inputs_of(model, clips):
    """Inputs with which a model of any class returns a loss."""
    ids = torch.randint(0, 50_000, (3, 5), generator=torch.Generator().manual_seed(0))
    if isinstance(model, MSClapForAudioClassification):
        return {**clips, "labels": torch.tensor([0, 1, 2])}
    if isinstance(model, MSClapModel):
        return {**clips, "input_ids": ids, "return_loss": True}
    prompt = {"prompt_ids": ids} if isinstance(model, MSClapForConditionalGeneration) else {}
    return {**clips, "input_ids": ids, "labels": ids, **prompt}


def train(model, inputs, steps=3):
    """A few steps of training, as a plain loop writes it."""
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    model.train()
    for _ in range(steps):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def cosine(a, b):
    return float(nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).min())


# Freezing and adapters


@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("tower", TOWERS)
def test_a_frozen_tower_does_not_move(make, tower, clips):
    torch.manual_seed(0)
    model = make(TOWERS[tower])
    model.audio_model.requires_grad_(False)
    before = copy.deepcopy(model.audio_model.state_dict())
    train(model, inputs_of(model, clips))
    for name, value in model.audio_model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("part", ["everything", "batch norms", "audio_model", "nothing"])
@pytest.mark.parametrize("tower", TOWERS)
def test_batch_norms_train_with_their_weights(part, tower):
    model = classifier(TOWERS[tower])
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if part == "everything":
        model.requires_grad_(False)
    elif part == "batch norms":
        for norm in norms:
            norm.requires_grad_(False)
    elif part == "audio_model":
        model.audio_model.requires_grad_(False)
    model.train()
    assert all(norm.training == (part == "nothing") for norm in norms)
    assert model.audio_model.training == (part in ("batch norms", "nothing"))
    assert model.training == (part != "everything")


@pytest.mark.parametrize("tower", TOWERS)
def test_an_adapter_saved_and_loaded_is_the_trained_model(tower, clips, tmp_path):
    torch.manual_seed(0)
    base = classifier(TOWERS[tower])
    start = copy.deepcopy(base)
    targets = ["qkv", "fc1"] if tower == "htsat" else ["fc"]
    model = get_peft_model(base, LoraConfig(target_modules=targets, modules_to_save=["classifier"]))
    train(model, inputs_of(base, clips))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(start, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**clips).logits, model(**clips).logits)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("enable", ["before", "after"])
def test_adapters_train_through_checkpointing(reentrant, enable, clips):
    torch.manual_seed(0)
    base = classifier(TINY_AUDIO)
    if enable == "before":
        base.activation_checkpointing_enable({"use_reentrant": reentrant})
    model = get_peft_model(base, LoraConfig(target_modules=["qkv", "fc1"]))
    if enable == "after":
        base.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    model(**clips, labels=torch.tensor([0, 1, 2])).loss.backward()
    gradients = [weight.grad for name, weight in model.named_parameters() if "lora_B" in name]
    assert len(gradients) == 8 and all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("targets", [["c_attn"], ["to_queries", "to_keys_values"]])
@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_adapters_of_a_captioner_train(targets, task_type, clips):
    torch.manual_seed(0)
    model = get_peft_model(captioner(TINY_AUDIO), LoraConfig(target_modules=targets, task_type=task_type)).train()
    inputs = inputs_of(model.get_base_model(), clips)
    first = model(**inputs).loss
    first.backward()
    gradients = [weight.grad for name, weight in model.named_parameters() if "lora_B" in name]
    assert gradients and all(gradient.abs().sum() > 0 for gradient in gradients)
    model.eval()
    tokens = model.generate(**clips, max_new_tokens=3, num_beams=1)
    assert tokens.shape == (3, 3)


# Clips of several windows


@pytest.mark.parametrize("counts", [[1, 2], [1], [4, 1, 1], [2, 0, 2], [1, 1, 1, 1, 1]])
def test_wrong_numbers_of_windows_are_errors(counts, clips):
    with pytest.raises(ValueError, match=r"num_windows is .*expected numbers from 1 to \d, one for each of \d clips"):
        make_model().get_audio_features(clips["input_features"], torch.tensor(counts))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_batches_are_split_as_any_batch_is(size, clips):
    """What gradient caching and data parallelism do: every tensor is split alike, by its rows."""
    model = make_model()
    batch = {**clips, "input_ids": torch.arange(12).view(3, 4), "return_loss": False}
    tensors = {name: value.split(size) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    parts = [dict(zip(tensors, rows, strict=True)) for rows in zip(*tensors.values(), strict=True)]
    with torch.no_grad():
        whole = model(**batch)
        vectors = [model(**part) for part in parts]
    torch.testing.assert_close(torch.cat([part.audio_embeds for part in vectors]), whole.audio_embeds)
    torch.testing.assert_close(torch.cat([part.text_embeds for part in vectors]), whole.text_embeds)


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_default_dtype_changes_nothing(dtype, clips):
    clip = sound(1.6)
    extract, model = make_feature_extractor(), make_model()
    vectors = torch.randn(2, 4, 24).unbind()
    expected = extract(clip, 44_100, return_tensors="pt")["input_features"], model.compute_similarity(*vectors)
    torch.set_default_dtype(dtype)
    try:
        found = extract(clip, 44_100, return_tensors="pt")["input_features"], model.compute_similarity(*vectors)
        with torch.no_grad():
            embeds = model.get_audio_features(**clips).pooler_output
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with torch.no_grad():
        assert torch.equal(embeds, model.get_audio_features(**clips).pooler_output)


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_changes_no_features_and_no_similarity(dtype, processor, clips):
    model = make_model()
    vectors = torch.randn(2, 4, 24).unbind()
    call = {"text": ["rain"], "audio": sound(1.6), "sampling_rate": 44_100}
    expected = processor(**call)["input_features"], model.compute_similarity(*vectors)
    with torch.no_grad():
        embeds = model.get_audio_features(**clips).pooler_output
        with torch.autocast("cpu", dtype=dtype):
            found = processor(**call)["input_features"], model.compute_similarity(*vectors)
            half = model.get_audio_features(**clips).pooler_output
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert half.dtype == torch.float32 and cosine(half, embeds) > 0.99


@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtype_is_what_was_asked_for(make, tower, dtype, tmp_path):
    saved = make(TOWERS[tower])
    saved.save_pretrained(tmp_path)
    islands = ("batch_norm", "logit_scale")
    cls = type(saved)
    for model in (cls.from_pretrained(tmp_path, dtype=dtype), cls._from_config(saved.config, dtype=dtype)):
        assert model.dtype == dtype and model.audio_model.dtype == dtype
        for name, weight in model.named_parameters():
            kept = any(part in islands for part in name.split("."))
            assert weight.dtype == (torch.float32 if kept else dtype), name


# Loading


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("auto", [MSClapModel, AutoModel, MSClapForAudioClassification])
def test_every_tower_takes_an_attention_implementation(implementation, auto, tmp_path, clips):
    saved = make_model(audio=TINY_CNN14)
    saved.save_pretrained(tmp_path)
    model = auto.from_pretrained(tmp_path, attn_implementation=implementation).eval()
    with torch.no_grad():
        windows = unpad_windows(**clips)
        expected = saved.audio_model(windows).pooler_output
        assert torch.equal(model.audio_model(windows).pooler_output, expected)


def test_pipelines_take_an_attention_implementation(tmp_path, processor):
    make_model(audio=TINY_CNN14).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    classify = pipeline(
        "zero-shot-audio-classification", model=str(tmp_path), model_kwargs={"attn_implementation": "sdpa"}
    )
    assert {score["label"] for score in classify(sound(1.0), candidate_labels=["dog", "rain"])} == {"dog", "rain"}


@pytest.mark.parametrize("make", [dual_encoder, classifier])
def test_saved_code_is_found_by_every_auto_class(make, tmp_path):
    make(TINY_CNN14).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_msclap.MSClapConfig",
        "AutoModel": "modeling_msclap.MSClapModel",
        "AutoModelForAudioClassification": "modeling_msclap.MSClapForAudioClassification",
    }
    assert isinstance(AutoModelForAudioClassification.from_pretrained(tmp_path), MSClapForAudioClassification)


@pytest.mark.parametrize("tower", TOWERS)
def test_towers_load_from_a_clap_folder(tower, tmp_path, batch):
    model = make_model(audio=TOWERS[tower])
    model.save_pretrained(tmp_path)
    audio, heard = MSClapAudioModel.from_pretrained(tmp_path, output_loading_info=True)
    text, read = MSClapTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(heard[key] or read[key] for key in ("missing_keys", "unexpected_keys"))
    with torch.no_grad():
        out = model(**batch)
        clips = audio.eval()(batch["input_features"], batch["num_windows"]).pooler_output
        assert torch.equal(clips, out.audio_embeds)
        texts = text.eval()(batch["input_ids"], batch["attention_mask"]).pooler_output
        assert torch.equal(texts, out.text_embeds)


# Quantisation, tracing


class Pooled(nn.Module):
    """A tower's pooled output alone: tracing takes tensors."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, features):
        return self.tower(features).pooler_output


@pytest.mark.parametrize("tower", TOWERS)
def test_dynamic_quantisation(tower, clips):
    model = make_model(audio=TOWERS[tower]).audio_model
    small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        found, expected = (each(unpad_windows(**clips)).pooler_output for each in (small, model))
    assert cosine(found, expected) > 0.99


@pytest.mark.parametrize("tower", TOWERS)
def test_a_traced_tower_takes_any_batch_size(tower, clips):
    model = make_model(audio=TOWERS[tower]).audio_model
    features = unpad_windows(**clips)
    with torch.no_grad():
        traced = torch.jit.trace(Pooled(model), features[:2])
        for size in (1, 2, 4):
            torch.testing.assert_close(traced(features[:size]), model(features[:size]).pooler_output)


# Captioners as causal language models


@pytest.mark.parametrize("make", [captioner, prompt_model])
def test_audio_features_follow_the_output_convention(make, clips):
    model = make(TINY_AUDIO).eval()
    with torch.no_grad():
        out = model.get_audio_features(**clips)
        first = model.get_audio_features(**clips, return_dict=False)
        again = model.get_audio_features(**clips, return_dict=True)
    assert isinstance(first, tuple) and torch.equal(first[1], out.pooler_output)
    assert torch.equal(again.pooler_output, out.pooler_output) and out.pooler_output.shape == (3, 24)


@pytest.mark.parametrize("make", [captioner, prompt_model])
def test_keywords_of_causal_language_models(make, clips):
    torch.manual_seed(0)
    model = make(TINY_AUDIO).eval()
    inputs = inputs_of(model, clips)
    ids = inputs.pop("labels")
    mask = torch.ones_like(ids)
    with torch.no_grad():
        plain = model(**inputs, labels=ids)
        assert plain.logits.shape == (3, 6, 50257) and plain.cache is None
        embeds = model.get_input_embeddings()(ids)
        by_embeds = model(**{**inputs, "input_ids": None}, inputs_embeds=embeds, labels=ids, attention_mask=mask)
        torch.testing.assert_close(by_embeds.logits, plain.logits)
        torch.testing.assert_close(by_embeds.loss, plain.loss)
        with pytest.raises(ValueError, match="both input_ids and inputs_embeds"):
            model(**inputs, inputs_embeds=embeds)

        for keep in (1, 3):
            kept = model(**inputs, labels=ids, logits_to_keep=keep)
            torch.testing.assert_close(kept.logits, plain.logits[:, -keep:])
            torch.testing.assert_close(kept.loss, plain.loss)
        whole = model(**inputs, logits_to_keep=0).logits
        assert whole.shape[1] == 5 + model.config.prefix_length * (2 if make is prompt_model else 1)
        torch.testing.assert_close(whole[:, -6:], plain.logits)

        shifted = torch.cat([ids[:, 1:], ids[:, :1]], dim=1)  # what follows each token
        expected = nn.functional.cross_entropy(plain.logits[:, 1:].flatten(0, 1), shifted.flatten())
        for labels in (None, ids):
            torch.testing.assert_close(model(**inputs, labels=labels, shift_labels=shifted).loss, expected)

        begun = model(**{**inputs, "input_ids": ids[:, :2]}, use_cache=True)
        rest = model(input_ids=ids[:, 2:], cache=begun.cache, use_cache=True, attention_mask=mask)
        torch.testing.assert_close(torch.cat([begun.logits, rest.logits], dim=1), plain.logits)
        with pytest.raises(ValueError, match="input_features"):
            model(input_ids=ids)


# Processor, pipelines, data sets


def test_feature_extraction_pipeline_embeds_texts(checkpoint, processor):
    model = AutoModel.from_pretrained(checkpoint).eval()
    extract = pipeline("feature-extraction", model=str(checkpoint))
    found = extract(["a dog barks", "rain"])
    with torch.no_grad():
        expected = model.get_text_features(**processor(text=["a dog barks", "rain"])).pooler_output
    torch.testing.assert_close(torch.tensor(found).squeeze(1), expected)


@pytest.mark.parametrize("channels", [2, 6, 8])
def test_few_rows_are_channels_with_a_warning(channels):
    extract = make_feature_extractor()
    array = np.stack([sound(1.0, seed=i) for i in range(channels)])
    with pytest.warns(UserWarning, match=r"list\(array\)"):
        one = extract(array, 16_000, return_tensors="pt")
    assert one["num_windows"].tolist() == [1]
    assert extract(list(array), 16_000, return_tensors="pt")["num_windows"].tolist() == [1] * channels
    assert torch.equal(extract([array], 16_000, return_tensors="pt")["input_features"], one["input_features"])


@pytest.mark.parametrize("shape", [(9, 16_000), (16, 16_000), (16_000, 16)])
def test_many_rows_are_refused(shape):
    with pytest.raises(ValueError, match="as a list, list"):
        make_feature_extractor()(np.zeros(shape, dtype=np.float32), 16_000)


@pytest.fixture(scope="module")
def rows():
    """A data set with a row of features for each of six clips, two of them of several windows."""
    extract = make_feature_extractor()
    sounds = [sound(seconds, seed=i) for i, seconds in enumerate((0.7, 1.6, 1.0, 2.5, 0.4, 1.0))]
    data = Dataset.from_dict({"sound": sounds, "label": [0, 1, 2, 0, 1, 2]})
    return data.map(
        lambda batch: extract([np.float32(clip) for clip in batch["sound"]], 16_000),
        batched=True,
        remove_columns="sound",
    )


def arguments(folder):
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
    )


def test_mapped_clips_train_a_classifier(rows, tmp_path):
    assert rows["num_windows"][:] == [1, 2, 1, 3, 1, 1]
    lists = make_feature_extractor()([sound(0.7), sound(1.6)], 16_000, return_tensors=None)
    assert [clip.shape for clip in lists["input_features"]] == [(1, 1, 201, 32), (2, 1, 201, 32)]
    batch = MSClapDataCollator()([rows[i] for i in range(6)])
    assert batch["input_features"].shape == (6, 3, 1, 201, 32) and batch["labels"].tolist() == [0, 1, 2, 0, 1, 2]
    torch.manual_seed(0)
    model = classifier(TINY_AUDIO)
    trainer = Trainer(
        model, arguments(tmp_path), train_dataset=rows, eval_dataset=rows, data_collator=MSClapDataCollator()
    )
    assert trainer.train().training_loss > 0 and trainer.evaluate()["eval_loss"] > 0
    assert trainer.predict(rows).predictions.shape == (6, 3)


def test_mapped_pairs_train_a_dual_encoder(rows, processor, tmp_path):
    texts = ["dog", "rain falls", "a bell rings twice", "wind", "cat", "a door"]
    pairs = rows.add_column("input_ids", [processor.tokenizer(text)["input_ids"] for text in texts])
    collator = MSClapDataCollator(tokenizer=processor.tokenizer, return_loss=True)
    with pytest.raises(ValueError, match="tokenizer"):
        MSClapDataCollator()([pairs[0]])
    torch.manual_seed(0)
    model = dual_encoder(TINY_AUDIO)
    before = model.logit_scale.item()
    assert Trainer(model, arguments(tmp_path), train_dataset=pairs, data_collator=collator).train().training_loss > 0
    assert model.logit_scale.item() != before
