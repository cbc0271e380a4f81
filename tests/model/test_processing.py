import pytest
import torch
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer

from clap_hf import MSClapFeatureExtractor, MSClapProcessor
from clap_hf.tokenization import sentence_tokenizer
from conftest import GPT2_TOKENIZER, make_config, make_model, sound

END = [220, 50256]  # " <|endoftext|>": the space is a token of its own, as released


def test_the_end_token_closes_every_text(processor, tokenizer):
    plain = AutoTokenizer.from_pretrained(GPT2_TOKENIZER)
    for text in ("a dog barks", "", "naïve café 🙂!", "ends with a space "):
        ids = processor(text=text)["input_ids"][0].tolist()
        assert ids == plain(text)["input_ids"] + END
        assert ids == plain(text + " <|endoftext|>")["input_ids"], "what msclap feeds"
        assert tokenizer(text)["input_ids"] == ids, "stock pipelines call the tokenizer alone"


def test_truncation_keeps_the_end_token(processor):
    long = "thunder " * 200
    ids = processor(text=long)["input_ids"][0].tolist()
    assert len(ids) == 77 and ids[-2:] == END and END[1] not in ids[:-1]
    ids = processor(text=long, max_length=12)["input_ids"][0].tolist()
    assert len(ids) == 12 and ids[-2:] == END
    assert processor(text=long, truncation=False)["input_ids"].shape[1] > 200


def test_padding_is_dynamic_and_to_the_right(processor):
    out = processor(text=["rain", "a very long sentence about rain on roofs"])
    assert out["input_ids"].shape[1] == out["attention_mask"][1].sum() < 77
    assert out["attention_mask"][0].tolist() == sorted(out["attention_mask"][0].tolist(), reverse=True)
    assert processor(text="rain", padding="max_length")["input_ids"].shape == (1, 77)
    assert processor(text="rain", padding="max_length", max_length=20)["input_ids"].shape == (1, 20)


def test_text_options_do_not_reach_the_audio(processor):
    plain = processor(text="rain", audio=sound(0.5), sampling_rate=16_000)
    padded = processor(text="rain", audio=sound(0.5), sampling_rate=16_000, padding="max_length", max_length=20)
    assert torch.equal(plain["input_features"], padded["input_features"])
    assert padded["input_ids"].shape == (1, 20)


def test_audio_and_text_options(processor):
    clip = sound(3.0)
    middle = processor(audio=clip, sampling_rate=16_000, audio_kwargs={"long_audio": "center"})
    assert middle["num_windows"].tolist() == [1] and "input_ids" not in middle
    assert torch.equal(
        middle["input_features"], processor(audio=clip[16_000:32_000], sampling_rate=16_000)["input_features"]
    )
    assert processor(text="rain", text_kwargs={"padding": "max_length"})["input_ids"].shape == (1, 77)


def test_mistakes_are_errors(processor):
    with pytest.raises(ValueError, match="Nothing to process"):
        processor()
    with pytest.raises(ValueError, match="has no sampling rate"):
        processor(text="rain", audio=sound(0.5))
    with pytest.raises(TypeError, match="audios"):
        processor(text="rain", audios=sound(0.5))
    with pytest.raises(TypeError, match="max_length_s"):
        processor(audio=sound(0.5), sampling_rate=16_000, audio_kwargs={"max_length_s": 7})


def test_every_key_is_accepted_by_the_model(processor):
    out = processor(text=["rain", "wind"], audio=[sound(0.5), sound(1.5)], sampling_rate=16_000)
    assert set(out) == set(processor.model_input_names)
    with torch.no_grad():
        assert make_model()(**out).logits_per_audio.shape == (2, 2)


def test_round_trip(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    reloaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(reloaded) is MSClapProcessor
    inputs = {"text": ["stop!", "thunder " * 100], "audio": sound(2.5, 44_100), "sampling_rate": 44_100}
    before, after = processor(**inputs), reloaded(**inputs)
    assert set(before) == set(after) and all(torch.equal(before[key], after[key]) for key in before)


def test_auto_classes_find_the_parts(checkpoint, processor):
    extract = AutoFeatureExtractor.from_pretrained(checkpoint)
    assert type(extract) is MSClapFeatureExtractor
    assert extract.to_dict() == processor.feature_extractor.to_dict()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    long = "thunder " * 100
    assert tokenizer(long, truncation=True)["input_ids"] == processor(text=long)["input_ids"][0].tolist()
    assert tokenizer.padding_side == "right" and tokenizer.pad_token_id is not None


def test_bert_keeps_its_own_special_tokens():
    config = make_config(text={"model_type": "bert"})
    tokenizer = sentence_tokenizer(GPT2_TOKENIZER.parent / "bert-base-uncased", config.text_config, max_length=100)
    tokens = tokenizer("A dog, outside!")
    assert tokenizer.convert_ids_to_tokens(tokens["input_ids"]) == ["[CLS]", "a", "dog", ",", "outside", "!", "[SEP]"]
    assert set(tokens) == {"input_ids", "attention_mask"}
    assert len(tokenizer("dog " * 200, truncation=True)["input_ids"]) == 100


def test_an_option_given_twice_is_an_error(processor):
    with pytest.raises(ValueError, match="padding was passed two times"):
        processor(text="rain", padding=True, text_kwargs={"padding": "max_length"})


@pytest.mark.parametrize(
    "own, call, length", [({}, {}, 77), ({"max_length": 12}, {}, 12), ({"max_length": 12}, {"max_length": 20}, 20)]
)
def test_the_call_comes_before_the_tokenizer_before_the_defaults(own, call, length, tmp_path, processor):
    processor.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, **own)
    configured = MSClapProcessor(processor.feature_extractor, tokenizer)
    assert configured(text="thunder " * 200, **call)["input_ids"].shape == (1, length)


def test_random_crops_differ_from_call_to_call(processor):
    generator = torch.Generator().manual_seed(0)
    call = {
        "audio": sound(5.0),
        "sampling_rate": 16_000,
        "audio_kwargs": {"long_audio": "random", "generator": generator},
    }
    assert not torch.equal(processor(**call)["input_features"], processor(**call)["input_features"])
