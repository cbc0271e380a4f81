import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, GPT2Config

from clap_hf import MSClapAudioConfig, MSClapConfig
from conftest import TINY_AUDIO, TINY_CNN14, TINY_GPT2, make_config, make_model


def test_defaults_are_the_released_2023_model():
    config = MSClapConfig()
    audio = config.audio_config
    assert (audio.architecture, audio.hidden_size, audio.num_frames, audio.num_mel_bins) == ("htsat", 768, 1024, 64)
    assert tuple(audio.depths) == (2, 2, 6, 2) and tuple(audio.num_attention_heads) == (4, 8, 16, 32)
    assert isinstance(config.text_config, GPT2Config) and config.text_config.hidden_size == 768
    assert (config.projection_dim, config.text_pooling) == (1024, "last_token")
    assert config.logit_scale_init_value == pytest.approx(1 / 0.07)


def test_cnn14_hidden_size_defaults_to_the_last_block():
    assert MSClapAudioConfig(architecture="cnn14").hidden_size == 2048
    assert MSClapAudioConfig(architecture="cnn14", conv_channels=[4, 8]).hidden_size == 8


@pytest.mark.parametrize(
    "model_type, pooling",
    [("gpt2", "last_token"), ("bert", "cls"), ("roberta", "cls"), ("clip_text_model", "projection")],
)
def test_text_pooling_follows_the_text_model(model_type, pooling):
    assert MSClapConfig(text_config={"model_type": model_type}).text_pooling == pooling


def test_text_pooling_must_be_given_for_other_text_models():
    with pytest.raises(StrictDataclassClassValidationError) as error:
        MSClapConfig(text_config={"model_type": "mpnet"})
    assert "mpnet" in str(error.value.__cause__) and "Pass text_pooling=" in str(error.value.__cause__)
    assert MSClapConfig(text_config={"model_type": "mpnet"}, text_pooling="mean").text_pooling == "mean"


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"architecture": "swin"}, "'swin'"),
        ({"depths": [2, 2, 2]}, "same number of stages"),
        ({"num_frames": 250}, "multiples of 8"),
        ({"num_mel_bins": 33}, "multiples of 8"),
        ({"window_size": 7}, "not a multiple of its attention window"),
        ({"num_attention_heads": [3, 4]}, "not divisible by its 3 heads"),
    ],
)
def test_impossible_geometry_is_an_error(settings, word):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        MSClapAudioConfig(**{**TINY_AUDIO, **settings})
    assert word in str(error.value.__cause__)


def test_wrong_types_are_errors():
    with pytest.raises(StrictDataclassFieldValidationError, match="projection_dim"):
        MSClapConfig(projection_dim="1024")


@pytest.mark.parametrize("audio", [TINY_AUDIO, TINY_CNN14])
def test_round_trip(tmp_path, audio):
    config = make_config(audio=audio, text_pooling="mean", logit_scale_max=100)
    config.save_pretrained(tmp_path)
    reloaded = AutoConfig.from_pretrained(tmp_path)
    assert type(reloaded) is MSClapConfig
    assert reloaded.to_diff_dict() | {"_name_or_path": ""} == config.to_diff_dict() | {"_name_or_path": ""}
    assert reloaded.text_config.n_embd == TINY_GPT2["n_embd"]


def test_tower_config_loads_from_the_full_checkpoint(checkpoint):
    config = MSClapAudioConfig.from_pretrained(checkpoint)
    assert config.embed_dim == TINY_AUDIO["embed_dim"]


def test_logit_scale_starts_where_the_config_says():
    for value in (1 / 0.07, 1 / 0.007):
        assert make_model(logit_scale_init_value=value).logit_scale.exp().item() == pytest.approx(value, rel=1e-5)
