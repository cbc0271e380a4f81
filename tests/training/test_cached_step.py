"""The cached step against the plain full-batch step, with dropout, drop-path, SpecAugment and BatchNorm active."""

import copy

import pytest
import torch
import torch.multiprocessing
from steps import BATCH, BERT, CNN14, HTSAT, STEP, cached_step, gradients, make_batch, make_stage, work
from torch import nn

from clap_hf.training.cached_step import prepare_batch_norm
from clap_hf.training.chunking import bytes_per_pair, largest_chunk, saved_bytes

TOLERANCE = 1e-5


class WholeBatchNorm(nn.Module):
    """The reference's input normalisation: torch's own BatchNorm over the whole batch."""

    def __init__(self, layer, features, size):
        super().__init__()
        self.calls = 0
        whole = nn.BatchNorm2d.forward(nn.BatchNorm2d.train(layer), features.transpose(1, 3))
        self.normed = whole.transpose(1, 3).split(size)

    def forward(self, features):
        self.calls += 1
        return self.normed[self.calls - 1]


def full_batch_step(stage, batch, size):
    """One graph over the whole batch: nothing cached, nothing replayed; masks drawn for chunks of `size`."""
    model = copy.deepcopy(stage.model)
    layer = model.audio_model.batch_norm
    model.audio_model.batch_norm = WholeBatchNorm(layer, batch["input_features"], size)
    stage.set_chunk_size(size)
    audio, text = [], []
    for i, seed in enumerate(stage._seeds(STEP, 0)):
        rows = slice(i * size, (i + 1) * size)
        torch.manual_seed(seed)
        audio.append(model.get_audio_features(batch["input_features"][rows]).pooler_output)
        mask = batch["attention_mask"][rows]
        tokens = mask.sum(dim=1).max()  # as the step cuts padding: the shape of dropout's masks
        text.append(model.get_text_features(batch["input_ids"][rows, :tokens], mask[:, :tokens]).pooler_output)
    criterion = copy.deepcopy(stage.criterion)
    reference = copy.copy(stage)
    reference.model, reference.criterion = model, criterion
    ids = [batch["clips"], batch["texts"]] if stage.recipe.mask_shared else []
    loss, _ = reference.global_loss(torch.cat(audio), torch.cat(text), batch["groups"], *ids)
    loss.backward()
    model.audio_model.batch_norm = layer
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return gradients(reference), buffers, loss.item()


def assert_equal_gradients(ours, expected, tolerance=TOLERANCE):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        difference = (ours[name] - value).norm() / value.norm()
        assert difference <= tolerance, f"{name}: relative difference {difference:.2e}"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 12])
def test_chunks_give_the_full_batch_gradient(size):
    stage = make_stage(HTSAT)
    batch = make_batch(stage)
    expected, buffers, loss = full_batch_step(stage, batch, size)
    ours, our_buffers, metrics = cached_step(stage, batch, size)
    assert "logit_scale" in ours and len(ours) > 50
    assert_equal_gradients(ours, expected)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    for name, value in buffers.items():  # running statistics too have moved once, by the whole batch
        torch.testing.assert_close(our_buffers[name], value)


def test_chunks_whose_graphs_are_kept_give_the_same_gradient():
    kept, twice = make_stage(HTSAT, chunk_size=None), make_stage(HTSAT)
    assert kept.asked_chunk_size == 3  # four chunks of twelve pairs
    batch = make_batch(kept)
    (ours, buffers, metrics), (theirs, other_buffers, others) = (cached_step(s, batch, 3) for s in (kept, twice))
    assert_equal_gradients(ours, theirs)
    assert metrics == others
    for name, value in buffers.items():
        torch.testing.assert_close(value, other_buffers[name])


def test_float32_is_as_exact_as_its_rounding():
    stage = make_stage(HTSAT, dtype=torch.float32)
    batch = make_batch(stage)
    assert_equal_gradients(cached_step(stage, batch, 4)[0], full_batch_step(stage, batch, 4)[0], tolerance=1e-4)


def test_one_chunk_is_the_plain_step_of_the_model_itself():
    stage = make_stage(HTSAT)
    batch = make_batch(stage)
    model = copy.deepcopy(stage.model)
    stage.set_chunk_size(BATCH)
    torch.manual_seed(stage._seeds(STEP, 0)[0])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "input_features")}
    model(**inputs, return_loss=True).loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    assert_equal_gradients(cached_step(stage, batch, BATCH)[0], expected)


@pytest.mark.parametrize("settings", [{"loss": "sigmoid"}, {"loss": "multi_positive"}, {"mask_shared": True}], ids=str)
def test_every_loss_is_exact_in_chunks(settings):
    stage = make_stage(HTSAT, BERT, **settings)
    batch = make_batch(stage)
    expected, _, _ = full_batch_step(stage, batch, 5)
    ours, _, _ = cached_step(stage, batch, 5)
    assert ("criterion.bias" in ours) == ("sigmoid" in settings.values())
    assert_equal_gradients(ours, expected)


def test_without_replayed_random_numbers_the_test_would_fail():
    stage = make_stage(HTSAT)
    batch = make_batch(stage)
    expected, _, _ = full_batch_step(stage, batch, 4)
    other, _, _ = full_batch_step(stage, batch, 3)  # the same step with other masks
    with pytest.raises(AssertionError, match="relative difference"):
        assert_equal_gradients(other, expected, tolerance=0.05)


STILL = {"audio": CNN14 | {"conv_dropout": 0.0, "head_dropout": 0.0, "spec_augment": False}, "still": True}
TWO_PROCESSES = {
    **{f"htsat, chunks of {size}": ({"audio": HTSAT}, size, size) for size in (1, 2, 3, 6)},
    "htsat, graphs kept": ({"audio": HTSAT, "chunk_size": None}, 3, 3),
    "sigmoid": ({"audio": HTSAT, "loss": "sigmoid"}, 3, 3),
    "masked": ({"audio": HTSAT, "text": BERT, "mask_shared": True}, 3, 3),
    "multi_positive": ({"audio": HTSAT, "loss": "multi_positive"}, 3, 3),
    "cnn14, frozen": ({"audio": CNN14, "batch_norm": "frozen"}, 2, 2),
    # Two halves against the whole: BatchNorm layers are synchronised. Without dropout, whose masks are by chunk.
    "cnn14, exact": (STILL, BATCH // 2, BATCH),
}


@pytest.fixture(scope="module")
def results_of_two(tmp_path_factory):
    """What two processes got; started once, since importing costs more than all the steps."""
    folder = tmp_path_factory.mktemp("processes")
    cases = [(name, arguments, size) for name, (arguments, size, _) in TWO_PROCESSES.items()]
    torch.multiprocessing.spawn(work, (2, cases, str(folder)), nprocs=2)
    return [torch.load(folder / f"{process}.pt") for process in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO_PROCESSES)
def test_two_processes_equal_one(results_of_two, name):
    arguments, _, size = TWO_PROCESSES[name]
    stage = make_stage(**arguments)
    expected, buffers, metrics = cached_step(stage, make_batch(stage), size)
    for results in results_of_two:
        ours, our_buffers, our_metrics = results[name]
        assert_equal_gradients(ours, expected)
        assert our_metrics == pytest.approx(metrics, rel=1e-5)
        for buffer, value in buffers.items():
            torch.testing.assert_close(our_buffers[buffer], value)


class TestCnn14:
    def test_chunks_are_refused(self):
        stage = make_stage(CNN14)
        with pytest.raises(ValueError, match="6 BatchNorm layers"):
            stage.set_chunk_size(4)
        with pytest.raises(ValueError, match="'ghost', expected one of"):
            prepare_batch_norm(stage.model, "ghost", in_chunks=False)

    def test_frozen_statistics_are_exact_in_chunks(self):
        stage = make_stage(CNN14, batch_norm="frozen")
        batch = make_batch(stage)
        expected, buffers, _ = full_batch_step(stage, batch, 4)
        ours, our_buffers, _ = cached_step(stage, batch, 4)
        assert_equal_gradients(ours, expected)
        for name, value in buffers.items():
            torch.testing.assert_close(our_buffers[name], value)

    def test_per_chunk_differs_from_the_full_batch_and_moves_statistics_once_a_chunk(self):
        stage = make_stage(CNN14, batch_norm="per_chunk")
        batch = make_batch(stage)
        ours, buffers, _ = cached_step(stage, batch, 4)
        whole, _, _ = cached_step(stage, batch, BATCH)
        assert buffers["audio_model.blocks.0.bn1.num_batches_tracked"] == 3
        assert buffers["audio_model.batch_norm.num_batches_tracked"] == 1
        name = "audio_model.blocks.0.conv1.weight"
        assert (ours[name] - whole[name]).norm() > 0.05 * whole[name].norm()


def test_automatic_chunks_fit_the_memory_they_are_given():
    stage = make_stage(HTSAT)
    batch = make_batch(stage)
    per_pair = bytes_per_pair(stage.model, batch)
    assert saved_bytes(stage.model, batch, 8) == pytest.approx(8 * per_pair, rel=0.2)
    assert largest_chunk(per_pair, 100 * per_pair, share=1536) == 32  # 60 pairs fit
    assert largest_chunk(per_pair, 10**15, share=1536) == 512
    assert largest_chunk(per_pair, 0, share=1536) == 1
    assert largest_chunk(per_pair, 10**15, share=20) == 20
