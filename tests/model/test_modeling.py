import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoModelForAudioClassification, GPT2Model

from clap_hf import MSClapForAudioClassification, MSClapModel
from clap_hf.model.modeling_msclap import contrastive_loss, mean_over_windows, unpad_windows
from clap_hf.model.modeling_msclap_base import mask_stripes
from clap_hf.model.modeling_msclap_cnn14 import MSClapCnn14Model
from clap_hf.model.modeling_msclap_htsat import MSClapDropPath, MSClapHtsatModel
from conftest import TINY_AUDIO, TINY_CNN14, make_config, make_feature_extractor, make_model, sound

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT_TOWERS = {
    "gpt2": ({"model_type": "gpt2", "vocab_size": 300, "n_layer": 2, "n_embd": 32, "n_head": 4}, None),
    "bert": ({"model_type": "bert", "vocab_size": 300, **SMALL}, None),
    "roberta": ({"model_type": "roberta", "vocab_size": 300, "max_position_embeddings": 66, **SMALL}, None),
    "clip": (
        {
            **{"model_type": "clip_text_model", "vocab_size": 300, "projection_dim": 20, "bos_token_id": 297},
            "eos_token_id": 298,
            "pad_token_id": 299,
            **SMALL,
        },
        None,
    ),
    "minilm": ({"model_type": "bert", "vocab_size": 300, **SMALL}, "mean"),
}


@pytest.fixture(scope="module")
def model():
    return make_model()


def tower_model(name, **settings):
    text, pooling = TEXT_TOWERS[name]
    return make_model(text=text, text_pooling=pooling, **settings)


def token_batch(lengths, vocabulary=297, end=298):
    """Random ids with an end token, padded on the right with id 0, which is also a real token."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, : length - 1] = torch.randint(0, vocabulary, (length - 1,), generator=generator)
        ids[row, length - 1] = end
        mask[row, :length] = 1
    return ids, mask


# Shapes and outputs


def test_outputs(model, batch):
    with torch.no_grad():
        out = model(**batch, return_loss=True)
    assert out.logits_per_audio.shape == (3, 3) and torch.equal(out.logits_per_audio, out.logits_per_text.t())
    cosine = out.audio_embeds @ out.text_embeds.t()
    torch.testing.assert_close(out.logits_per_audio, model.logit_scale.exp() * cosine, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.audio_embeds.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(out.text_embeds.norm(dim=1), torch.ones(3))
    assert out.audio_model_output.last_hidden_state.shape[0] == batch["num_windows"].sum() == 4
    assert out.loss.ndim == 0
    with torch.no_grad():
        as_tuple = model(**batch, return_loss=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[1], out.logits_per_audio)


def test_features_are_the_forward_embeddings(model, batch):
    with torch.no_grad():
        out = model(**batch)
        audio = model.get_audio_features(batch["input_features"], batch["num_windows"])
        text = model.get_text_features(batch["input_ids"], batch["attention_mask"])
        assert isinstance(model.get_audio_features(batch["input_features"], return_dict=False), tuple)
        assert isinstance(model.get_text_features(batch["input_ids"], return_dict=False), tuple)
        similarity = model.compute_similarity(audio.pooler_output, text.pooler_output)
    assert torch.equal(audio.pooler_output, out.audio_embeds)
    assert torch.equal(text.pooler_output, out.text_embeds)
    assert torch.equal(similarity, out.logits_per_audio)


def test_one_side_alone_is_embedded(model, batch):
    with torch.no_grad():
        both = model(**batch)
        text = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        audio = model(input_features=batch["input_features"], num_windows=batch["num_windows"])
    assert torch.equal(text.text_embeds, both.text_embeds) and torch.equal(audio.audio_embeds, both.audio_embeds)
    assert text.logits_per_audio is None and audio.text_embeds is None


def test_missing_sides_are_errors(model, batch):
    with pytest.raises(ValueError, match="neither input_ids nor input_features"):
        model()
    with pytest.raises(ValueError, match="input_features is missing"):
        model(input_ids=batch["input_ids"], return_loss=True)
    with pytest.raises(ValueError, match="input_ids is missing"):
        model(input_features=batch["input_features"], return_loss=True)
    with pytest.raises(ValueError, match="2 texts and 3 clips"):
        model(input_ids=batch["input_ids"][:2], input_features=batch["input_features"], return_loss=True)


def test_hidden_states_attentions_and_frame_map():
    audio = {**TINY_AUDIO, "num_labels_frame_map": 5}
    model = make_model(audio=audio)
    model.set_attn_implementation("eager")
    features = make_feature_extractor()(sound(1.0), 16_000)["input_features"][0]
    with torch.no_grad():
        out = model.audio_model(features, output_hidden_states=True, output_attentions=True)
        frames = model.audio_model.frame_map(out.last_hidden_state)
    # 128 x 64 image -> 32 x 16 patches of 16 channels, then 16 x 8 of 32; 8 and 2 windows of 8 x 8 patches.
    # The patches, then every block's output.
    assert [tuple(state.shape) for state in out.hidden_states] == [(1, 512, 16)] * 3 + [(1, 128, 32)] * 2
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert [tuple(weights.shape) for weights in out.attentions] == [(8, 2, 64, 64)] * 2 + [(2, 4, 64, 64)] * 2
    torch.testing.assert_close(out.attentions[1].sum(-1), torch.ones(8, 2, 64))
    assert frames.shape == (1, 32, 5) and frames.min() >= 0 and frames.max() <= 1
    torch.testing.assert_close(out.pooler_output, out.last_hidden_state.mean(dim=1))
    with pytest.raises(ValueError, match="num_labels_frame_map is 0"):
        make_model().audio_model.frame_map(out.last_hidden_state)


def test_frame_map_follows_time():
    """What is heard late shows late: the chunks are unfolded in their order."""
    model = make_model(audio={**TINY_AUDIO, "num_labels_frame_map": 5}).audio_model
    features = torch.full((1, 1, 256, 32), -80.0)
    with torch.no_grad():
        quiet = model.frame_map(model(features).last_hidden_state)
        for start in (0, 100, 240):
            burst = features.clone()
            burst[:, :, start : start + 16] = 0.0
            change = (model.frame_map(model(burst).last_hidden_state) - quiet).abs().sum(dim=(0, 2))
            # 256 frames in 32 steps; attention and the merging spread it a little.
            assert abs(change.argmax().item() - (start + 8) / 8) <= 4


@pytest.mark.parametrize("audio", [TINY_AUDIO, TINY_CNN14], ids=["htsat", "cnn14"])
def test_frame_features_are_windows_pooled_over_a_position(audio):
    model = make_model(audio=audio)
    features = unpad_windows(**make_feature_extractor()([sound(1.0), sound(1.0, seed=2)], 16_000))
    tower = model.audio_model
    with torch.no_grad():
        found = model.get_audio_frame_features(features)
        states = tower(features).last_hidden_state
        # 201 frames: stretched to 256 and 32 steps of 2 bins; or pooled by 4.
        assert found.shape == (2, 32, 24) if audio is TINY_AUDIO else (2, 50, 24)
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(found.shape[:2]))
        for position in (0, 7, 31):
            if audio is TINY_AUDIO:
                # Chunk 0 to 3 of the time, a quarter of the rows each; 8 columns of a chunk.
                chunk, column = divmod(position, 8)
                pooled = states.view(2, 4, 4, 8, 32)[:, chunk, :, column].mean(dim=1)
            else:
                pooled = F.relu(tower.fc(2 * states[:, position]))  # its maximum and its mean
            expected = F.normalize(model.audio_projection(pooled), dim=-1)
            torch.testing.assert_close(found[:, position], expected)
    assert tower.frames_per_position(201) == (201 / 32 if audio is TINY_AUDIO else 4)


@pytest.mark.parametrize("audio", [TINY_AUDIO, TINY_CNN14], ids=["htsat", "cnn14"])
def test_frame_features_follow_time(audio):
    model = make_model(audio=audio)
    quiet = torch.full((1, 1, 256, 32), -80.0)
    with torch.no_grad():
        before = model.get_audio_frame_features(quiet)
        step = model.audio_model.frames_per_position(256)
        for start in (0, 100, 240):
            burst = quiet.clone()
            burst[:, :, start : start + 16] = 0.0
            change = (model.get_audio_frame_features(burst) - before).norm(dim=-1)[0]
            assert abs(change.argmax().item() * step - start - 8) <= 32


@pytest.mark.parametrize("frames, mel", [(257, 32), (201, 64)])
def test_features_of_another_extractor_are_an_error(model, frames, mel):
    with pytest.raises(ValueError, match="feature extractor saved with the model"):
        model.audio_model(torch.zeros(1, 1, frames, mel))


def test_cnn14():
    model = make_model(audio=TINY_CNN14)
    assert isinstance(model.audio_model, MSClapCnn14Model)
    features = make_feature_extractor()([sound(1.0), sound(2.0, seed=2)], 16_000)
    with torch.no_grad():
        tower = model.audio_model(unpad_windows(**features), output_hidden_states=True)
        embeds = model.get_audio_features(**features).pooler_output
    # Two poolings by 2, the last block has none.
    assert tower.last_hidden_state.shape == (3, 201 // 4, 8) and tower.pooler_output.shape == (3, 12)
    assert len(tower.hidden_states) >= 3 and embeds.shape == (2, 24)
    with pytest.raises(ValueError, match=r"\[1, 1, 201, 64\], this tower takes .* of 32 mel bins"):
        model.audio_model(torch.zeros(1, 1, 201, 64))


def test_released_sizes():
    """The whole 2023 and 2022 architectures, without memory: parameter counts of msclap's models."""
    with torch.device("meta"):
        htsat = MSClapHtsatModel(make_config(audio={"num_labels_frame_map": 527}).audio_config)
        cnn14 = MSClapCnn14Model(make_config(audio={"architecture": "cnn14"}).audio_config)
    # msclap's, less the spectrogram's constants and the heads that it never uses (527 x 527; 2048 x 527).
    assert sum(p.numel() for p in htsat.parameters()) == 29_963_431
    assert sum(p.numel() for p in cnn14.parameters()) == 79_673_792


# Several windows


def test_clip_embedding_is_the_mean_of_its_windows(model):
    features = make_feature_extractor()([sound(0.6), sound(2.7, seed=1), sound(1.4, seed=2)], 16_000)
    assert features["num_windows"].tolist() == [1, 3, 2]
    with torch.no_grad():
        clips = model.get_audio_features(**features).pooler_output
        windows = model.get_audio_features(unpad_windows(**features)).pooler_output
    expected = [F.normalize(part.mean(dim=0), dim=0) for part in windows.split([1, 3, 2])]
    torch.testing.assert_close(clips, torch.stack(expected))
    values = torch.arange(6.0).view(6, 1)
    assert mean_over_windows(values, features["num_windows"], 3).flatten().tolist() == [0.0, 2.0, 4.5]
    assert mean_over_windows(values, None, 2).flatten().tolist() == [1.0, 4.0]


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_an_embedding_does_not_depend_on_its_batch(model, size):
    extract = make_feature_extractor()
    clips = [sound(0.4 + 0.2 * (i % 8), seed=i) for i in range(size)]
    with torch.no_grad():
        together = model.get_audio_features(**extract(clips, 16_000)).pooler_output
        for i in {0, size // 2, size - 1}:
            alone = model.get_audio_features(**extract(clips[i], 16_000)).pooler_output[0]
            assert (together[i] - alone).abs().max() <= 1e-5


# Text towers


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_text_towers(name):
    """Texts differ, padding does not matter, and every parameter of the tower gets a gradient."""
    model = tower_model(name)
    ids, mask = token_batch([5, 9, 13])
    with torch.no_grad():
        together = model.get_text_features(ids, mask).pooler_output
        for row, length in enumerate([5, 9, 13]):
            alone = model.get_text_features(ids[row : row + 1, :length], mask[row : row + 1, :length]).pooler_output
            assert (together[row] - alone[0]).abs().max() <= 1e-5
    assert (together @ together.t()).triu(1).max() < 0.999
    model.train()
    loss = model(ids, mask, torch.randn(3, 1, 201, 32), return_loss=True).loss
    loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_text_towers_are_pooled_as_configured():
    ids, mask = token_batch([5, 9])
    with torch.no_grad():
        for name, rows in (("bert", [0, 0]), ("gpt2", [4, 8])):
            model = tower_model(name)
            states = model.text_model(input_ids=ids, attention_mask=mask).last_hidden_state
            expected = F.normalize(model.text_projection(states[[0, 1], rows]), dim=-1)
            torch.testing.assert_close(model.get_text_features(ids, mask).pooler_output, expected)
        model = tower_model("minilm")
        states = model.text_model(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = torch.stack([states[0, :5].mean(dim=0), states[1].mean(dim=0)])
        expected = F.normalize(model.text_projection(mean), dim=-1)
        torch.testing.assert_close(model.get_text_features(ids, mask).pooler_output, expected)
        model = tower_model("clip")
        pooled = model.text_model(input_ids=ids, attention_mask=mask).text_embeds
        expected = F.normalize(model.text_projection(pooled), dim=-1)
        torch.testing.assert_close(model.get_text_features(ids, mask).pooler_output, expected)


def test_token_type_ids_are_accepted():
    model = tower_model("bert")
    ids, mask = token_batch([5, 9])
    with torch.no_grad():
        plain = model.get_text_features(ids, mask).pooler_output
        typed = model.get_text_features(ids, mask, torch.zeros_like(ids)).pooler_output
    assert torch.equal(plain, typed)


def test_exclamation_marks_do_not_move_the_pooled_position(model, tokenizer):
    """ "!" has id 0, which msclap takes for padding: it pools one position too early for every "!"."""
    assert tokenizer.convert_tokens_to_ids("!") == 0
    tokens = tokenizer(["stop!", "a dog barks at the door"], return_tensors="pt", padding=True)
    assert 0 in tokens["input_ids"][0]
    with torch.no_grad():
        states = model.text_model(**tokens).last_hidden_state
        ends = tokens["attention_mask"].sum(dim=1) - 1
        assert (tokens["input_ids"][[0, 1], ends] == 50256).all()
        expected = F.normalize(model.text_projection(states[[0, 1], ends]), dim=-1)
        torch.testing.assert_close(model.get_text_features(**tokens).pooler_output, expected)
        # Without a mask a lone text needs none: nothing is padding.
        lone = tokenizer("stop!", return_tensors="pt")
        bare = model.get_text_features(lone["input_ids"]).pooler_output
        torch.testing.assert_close(bare, expected[:1], rtol=1e-5, atol=1e-5)


# The loss


def test_loss_is_both_directions():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)) * 3
    target = torch.arange(5)
    by_text, by_audio = F.cross_entropy(logits, target), F.cross_entropy(logits.t(), target)
    assert (by_text - by_audio).abs() > 1e-2
    torch.testing.assert_close(contrastive_loss(logits), (by_text + by_audio) / 2)
    torch.testing.assert_close(contrastive_loss(logits.t()), contrastive_loss(logits))
    # Only one direction sees a constant added to one text's row, or to one clip's column.
    row, column = logits.clone(), logits.clone()
    row[2] += 2.0
    column[:, 2] += 2.0
    assert (contrastive_loss(row) - contrastive_loss(logits)).abs() > 1e-2
    assert (contrastive_loss(column) - contrastive_loss(logits)).abs() > 1e-2


def test_negatives_receive_gradient():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    contrastive_loss(logits).backward()
    # d/dz = (softmax over texts + softmax over clips) / 2N - diagonal / N
    expected = (logits.softmax(0) + logits.softmax(1)) / 8 - torch.eye(4) / 4
    torch.testing.assert_close(logits.grad, expected.detach(), rtol=0, atol=1e-7)
    off_diagonal = logits.grad[~torch.eye(4, dtype=torch.bool)]
    assert (off_diagonal > 0).all(), "negatives are pushed apart"
    assert (logits.grad.diagonal() < 0).all(), "pairs are pulled together"


def test_model_loss_by_hand_and_by_finite_differences(model, batch):
    model = copy.deepcopy(model)
    out = model(**batch, return_loss=True)
    target = torch.arange(3)
    by_hand = F.cross_entropy(out.logits_per_audio, target) / 2 + F.cross_entropy(out.logits_per_text, target) / 2
    torch.testing.assert_close(out.loss, by_hand)
    model.double()
    inputs = {**batch, "input_features": batch["input_features"].double()}
    audio = model.get_audio_features(inputs["input_features"], inputs["num_windows"]).pooler_output.double().detach()
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output.double().detach()

    def loss_of(audio, text, scale):
        return contrastive_loss(scale.exp() * text @ audio.t()).double()

    scale = model.logit_scale.detach().double()
    for index, values in enumerate((audio, text, scale)):
        arguments = [audio, text, scale]
        arguments[index] = values.clone().requires_grad_()
        loss_of(*arguments).backward()
        direction = torch.randn(values.shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        steps = []
        for sign in (1, -1):
            arguments_moved = [audio, text, scale]
            arguments_moved[index] = values + sign * 1e-2 * direction
            steps.append(loss_of(*arguments_moved))
        numeric = (steps[0] - steps[1]) / 2e-2
        analytic = (arguments[index].grad * direction).sum()
        assert numeric.item() == pytest.approx(analytic.item(), rel=2e-2, abs=2e-3)
        assert (arguments[index].grad.abs() > 0).all(), "every pair, matching or not, has a say"


def test_logit_scale_clamp(batch):
    free, clamped = make_model(logit_scale_init_value=200), make_model(logit_scale_init_value=200, logit_scale_max=100)
    with torch.no_grad():
        ratio = free(**batch).logits_per_audio / clamped(**batch).logits_per_audio
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0))


# Saving and loading


@pytest.mark.parametrize("audio", [TINY_AUDIO, TINY_CNN14], ids=["htsat", "cnn14"])
def test_save_and_load_is_bit_equal(tmp_path, batch, audio):
    model = make_model(audio=audio)
    model.save_pretrained(tmp_path)
    reloaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(reloaded) is MSClapModel and not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        before, after = model(**batch), reloaded(**batch)
    assert torch.equal(before.logits_per_audio, after.logits_per_audio)
    assert torch.equal(before.audio_embeds, after.audio_embeds) and torch.equal(before.text_embeds, after.text_embeds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(checkpoint, batch, model, dtype):
    loaded = MSClapModel.from_pretrained(checkpoint, dtype=dtype).eval()
    assert loaded.text_model.dtype == dtype
    assert loaded.audio_projection.linear1.weight.dtype == dtype
    # Decibels and the logit scale need float32.
    assert loaded.audio_model.batch_norm.running_mean.dtype == torch.float32
    assert loaded.logit_scale.dtype == torch.float32
    with torch.no_grad():
        out, reference = loaded(**batch), model(**batch)
    assert out.logits_per_audio.dtype == torch.float32
    cosine = F.cosine_similarity(out.audio_embeds, reference.audio_embeds)
    assert cosine.min() > (0.999999 if dtype == torch.float32 else 0.99)


@pytest.mark.parametrize("device_map", [None, "cpu", "auto", {"": "cpu"}])
def test_loading_on_meta_leaves_no_uninitialised_buffer(checkpoint, batch, model, device_map):
    """Weights load on the meta device; buffers that no file holds must be made again."""
    # Memory that was just freed must not hold the right answer by chance.
    junk = [torch.full((100_000,), 7.7e7) for _ in range(8)]
    del junk
    loaded = MSClapModel.from_pretrained(checkpoint, device_map=device_map)
    expected = dict(model.named_buffers())
    assert dict(loaded.named_buffers()).keys() == expected.keys()
    non_persistent = {name for name in expected if name not in model.state_dict()}
    assert any("shift_mask" in name for name in non_persistent)
    assert any("relative_position_index" in name for name in non_persistent)
    for name, buffer in loaded.named_buffers():
        torch.testing.assert_close(buffer, expected[name], rtol=0, atol=0, check_dtype=name in non_persistent)
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits_per_audio, model(**batch).logits_per_audio)


def test_weights_missing_from_a_checkpoint_are_initialised(tmp_path):
    """On the meta path, too: projections as torch does it, relative positions small, the scale as configured."""
    small = MSClapForAudioClassification(make_config())
    small.save_pretrained(tmp_path)
    loaded, info = MSClapModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} == {
        "text_model",
        "text_projection",
        "audio_projection",
        "logit_scale",
    }
    fresh = MSClapModel(make_config())
    for model in (loaded, fresh):
        for projection in (model.text_projection, model.audio_projection):
            for linear in (projection.linear1, projection.linear2):
                # uniform in +-1 / sqrt(inputs)
                bound = linear.in_features**-0.5
                assert linear.weight.abs().max() <= bound
                assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
        assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-5)
        table = model.audio_model.stages[0].blocks[0].attn.relative_position_bias_table
        assert 0.01 < table.std() < 0.03
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_audio_tower_loads_alone_from_the_full_checkpoint(checkpoint, batch, model):
    tower, info = MSClapHtsatModel.from_pretrained(checkpoint, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        windows = batch["input_features"].flatten(0, 1)
        assert torch.equal(tower(windows).pooler_output, model.audio_model(windows).pooler_output)
    with pytest.raises(ValueError, match=r"takes \[windows, 1, frames, mel\]"):
        tower(batch["input_features"])


def test_classifier_loads_its_tower_from_the_full_checkpoint(checkpoint, batch, model):
    classifier, info = AutoModelForAudioClassification.from_pretrained(
        checkpoint, num_labels=5, output_loading_info=True
    )
    assert type(classifier) is MSClapForAudioClassification
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"} and not info["unexpected_keys"]
    for name, parameter in classifier.audio_model.named_parameters():
        assert torch.equal(parameter, model.audio_model.get_parameter(name))
    with torch.no_grad():
        logits = classifier(batch["input_features"], batch["num_windows"]).logits
        windows = classifier(batch["input_features"].flatten(0, 1)).logits
    assert logits.shape == (3, 5)
    torch.testing.assert_close(logits[1], windows[2:4].mean(dim=0))


# Attention, dropout, augmentation, checkpointing


@pytest.mark.parametrize("audio", [TINY_AUDIO, {**TINY_AUDIO, "window_size": 4, "depths": [2, 4]}])
def test_sdpa_equals_eager(batch, audio):
    sdpa = make_model(audio=audio)
    eager = copy.deepcopy(sdpa)
    eager.set_attn_implementation("eager")
    assert sdpa.audio_model.config._attn_implementation == "sdpa"
    assert eager.audio_model.config._attn_implementation == "eager"
    with torch.no_grad():
        one, other = sdpa(**batch), eager(**batch)
    assert (one.audio_embeds - other.audio_embeds).abs().max() <= 1e-5
    assert (one.text_embeds - other.text_embeds).abs().max() <= 1e-5


def test_shifted_windows_hear_their_neighbours(model):
    """A shifted block mixes 8 x 8 patches around the plain windows' borders, and never across the image's ends."""
    block = copy.deepcopy(model.audio_model.stages[0].blocks[1]).double()
    assert block.attn.shift == 4 and block.attn.resolution == (32, 16)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 512, 16, dtype=torch.float64, generator=generator)
    step = torch.randn(16, dtype=torch.float64, generator=generator)
    moved = tokens.clone()
    moved[0, 10 * 16 + 6] += step  # row 10, column 6: in the shifted window of rows 4..11, columns 4..11
    with torch.no_grad():
        change = (block(moved) - block(tokens)).abs().sum(-1).view(32, 16)
    inside = torch.zeros(32, 16, dtype=torch.bool)
    inside[4:12, 4:12] = True
    assert (change[inside] > 1e-6).all() and (change[~inside] < 1e-12).all()
    # At the edge the cyclic shift joins both ends of the image; the mask keeps them apart.
    moved = tokens.clone()
    moved[0, 0] += step
    with torch.no_grad():
        change = (block(moved) - block(tokens)).abs().sum(-1).view(32, 16)
    inside = torch.zeros(32, 16, dtype=torch.bool)
    inside[:4, :4] = True
    assert (change[inside] > 1e-6).all() and (change[~inside] < 1e-12).all()


def train_model(**audio):
    """A tiny model in training mode without randomness, except what `audio` switches on."""
    quiet = {"spec_augment": False, "drop_path_rate": 0.0, "conv_dropout": 0.0, "head_dropout": 0.0}
    text = {**make_config().text_config.to_dict(), "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return make_model(text=text, audio={**TINY_AUDIO, **quiet, **audio}, projection_dropout=0.0).train()


# transformers 5.23 calls the method activation_checkpointing_enable; 5.20 does not know that name.
NEW_NAME = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


@NEW_NAME
@pytest.mark.parametrize("audio", [{}, TINY_CNN14], ids=["htsat", "cnn14"])
def test_gradient_checkpointing_gives_the_same_gradients(batch, audio):
    gradients = []
    for checkpointing in (False, True):
        model = train_model(**audio)
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model(**batch, return_loss=True).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@NEW_NAME
def test_gradient_checkpointing_replays_random_numbers(batch):
    """With dropout and stochastic depth on, the recomputed forward must draw what the first one drew."""
    gradients = []
    for checkpointing in (False, True):
        model = make_model(audio={**TINY_AUDIO, "drop_path_rate": 0.5, "hidden_dropout_prob": 0.3}).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(7)
        model(**batch, return_loss=True).loss.backward()
        gradients.append(model.audio_model.patch_embed.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_drop_path_drops_whole_residuals_per_clip():
    torch.manual_seed(0)
    residual = torch.ones(2_000, 3, 4)
    drop_path = MSClapDropPath(0.3)
    dropped = drop_path(residual)
    per_clip = dropped.flatten(1)
    assert ((per_clip == 0).all(dim=1) | (per_clip == 1 / 0.7).all(dim=1)).all()
    assert (per_clip[:, 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(drop_path.eval()(residual), residual)


def test_drop_path_rises_over_the_blocks():
    model = make_model(audio={**TINY_AUDIO, "depths": [2, 3], "drop_path_rate": 0.2})
    blocks = [block for stage in model.audio_model.stages for block in stage.blocks]
    assert [block.drop_path.drop_prob for block in blocks] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_spec_augment_only_in_training_and_only_if_switched_on(batch):
    features = batch["input_features"].flatten(0, 1)

    def differs(**audio):
        model = train_model(**audio)
        state = copy.deepcopy(model.state_dict())
        runs = []
        for _ in range(2):
            model.load_state_dict(state)
            with torch.no_grad():
                runs.append(model.audio_model(features).pooler_output)
        return not torch.equal(*runs)

    assert differs(spec_augment=True) and not differs(spec_augment=False)
    model = make_model()
    with torch.no_grad():
        assert torch.equal(model.audio_model(features)[0], model.audio_model(features)[0])


def test_stripes_are_masked_per_clip():
    torch.manual_seed(0)
    for dim, width in ((2, 64), (3, 8)):
        masked = mask_stripes(torch.ones(200, 1, 256, 32), dim, width, 2)
        profile = masked[:, 0].mean(dim=2 if dim == 2 else 1)  # over the axis that is not striped
        assert set(profile.unique().tolist()) == {0.0, 1.0}, "stripes reach across the whole other axis"
        zeros = (profile == 0).sum(dim=1)
        assert zeros.max() <= 2 * (width - 1) and zeros.float().mean() > 0.6 * width
        assert len({tuple(row.tolist()) for row in profile}) > 150, "other stripes for every clip"


def test_embeddings_can_be_resized(tokenizer):
    model = make_model()
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    assert isinstance(model.text_model, GPT2Model)
    model.resize_token_embeddings(50_260)
    assert model.get_input_embeddings().num_embeddings == 50_260
    assert model.config.text_config.vocab_size == 50_260
