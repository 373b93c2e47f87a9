"""Reading a prepared dataset: the dataset, the order of its samples, and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from giblet.data.batches import BatchBuilder
from giblet.data.order import SampleOrder, epoch_order
from giblet.data.prepared import PreparedDataset, Segment
from giblet.errors import ConfigError, DataError
from tests.support.prepared import make_prepared


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("data") / "abc", absent=((1, 0),))


def test_segments_cover_each_target_tr_of_a_split_once(dataset):
    segments = dataset.segments("train", segment_trs=16, context_trs=7)
    seen = [(s.presentation, tr) for s in segments for tr in range(s.start, s.stop)]
    wanted = [(p, tr) for p, first, stop in dataset.manifest.split["train"] for tr in range(first, stop)]
    assert sorted(seen) == wanted


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json"):
        PreparedDataset.open(tmp_path)


def test_an_array_of_another_shape_than_the_manifest_says_is_refused(tmp_path):
    made = make_prepared(tmp_path / "x")
    np.save(made.path / made.manifest.presentations[0].arrays["text"].file, np.zeros((3, 5), np.float16))
    with pytest.raises(DataError, match="manifest says"):
        PreparedDataset.open(made.path)


def test_a_changed_byte_is_found_by_its_hash(tmp_path):
    made = make_prepared(tmp_path / "x")
    made.check_hashes()
    path = made.path / made.manifest.presentations[0].arrays["video"].file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="SHA-256"):
        made.check_hashes()


def test_order_is_a_permutation_that_changes_with_epoch_and_seed():
    first = epoch_order(7, 0, 100)
    assert sorted(first) == list(range(100))
    assert first.dtype == np.int64
    assert np.array_equal(first, epoch_order(7, 0, 100))
    assert not np.array_equal(first, epoch_order(7, 1, 100))
    assert not np.array_equal(first, epoch_order(8, 0, 100))


def test_order_is_the_same_for_ever():
    assert epoch_order(7, 3, 8).tolist() == [2, 4, 7, 3, 5, 1, 0, 6]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_of_any_world_size_see_each_sample_of_an_epoch_once(world_size):
    order = SampleOrder(seed=7, samples=35, global_batch_samples=8, micro_batch_samples=1)
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = [i for s in steps for r in range(world_size) for i in order.rank_indices(s, r, world_size).ravel()]
        assert sorted(seen) == sorted(epoch_order(7, epoch, 35)[:32])


def test_a_run_resumed_at_another_world_size_goes_on_with_the_next_sample():
    order = SampleOrder(seed=1, samples=20, global_batch_samples=4, micro_batch_samples=2)
    assert order.position(28).step == 7
    assert (order.position(28).epoch, order.position(28).step_in_epoch) == (1, 2)
    with pytest.raises(ValueError, match="multiple"):
        order.position(30)


def test_fewer_samples_than_a_global_batch_is_refused():
    with pytest.raises(ConfigError, match="no step"):
        SampleOrder(seed=1, samples=3, global_batch_samples=4, micro_batch_samples=2)


def test_rows_of_a_batch_are_the_dataset_s_own(dataset):
    segments = [Segment(0, 0, 16), Segment(0, 16, 32), Segment(1, 24, 30)]
    builder = BatchBuilder(dataset, segments, segment_trs=16, context_trs=3)
    batch = builder.build([2, 1, 0])
    assert batch.trs == 19
    assert batch.rows == 57
    middle = dataset.presentations[0]
    assert np.array_equal(batch.video[19:38], middle.video[13:32])
    assert np.array_equal(batch.audio[19:38], middle.audio[13:32])
    assert batch.audio.dtype == torch.int64
    assert np.array_equal(batch.text[19:38].numpy(), middle.text[13:32].astype(np.float32))
    assert np.array_equal(batch.bold[22:38, :7], middle.bold["sub-01"][16:32])
    assert np.array_equal(batch.bold[22:38, 7:], middle.bold["sub-02"][16:32])
    assert not batch.bold[19:22].any()
    assert not batch.bold_mask[19:22].any()


def test_rows_that_do_not_exist_are_zero_and_masked(dataset):
    segments = [Segment(0, 0, 16), Segment(1, 24, 30)]
    batch = BatchBuilder(dataset, segments, segment_trs=16, context_trs=3).build([0, 1])
    assert batch.row_mask.tolist() == [False] * 3 + [True] * 16 + [True] * 9 + [False] * 10
    assert batch.target_mask.tolist() == [False] * 3 + [True] * 16 + [False] * 3 + [True] * 6 + [False] * 10
    absent = ~batch.row_mask
    for tensor in (batch.video, batch.audio, batch.text, batch.bold, batch.video_mask, batch.bold_mask):
        assert not tensor[absent].any()


def test_a_subject_who_did_not_see_a_presentation_is_masked(dataset):
    batch = BatchBuilder(dataset, [Segment(1, 0, 4)], segment_trs=4).build([0])
    assert batch.bold_mask.tolist() == [[False, True]] * 4
    assert not batch.bold[:, :7].any()


def test_frames_the_network_does_not_see_are_left_out_and_missing_ones_repeated_and_masked(dataset):
    segments = [Segment(0, 0, 4)]
    source = dataset.presentations[0]
    fewer = BatchBuilder(dataset, segments, segment_trs=4, video_frames=2, audio_frames=8).build([0])
    assert np.array_equal(fewer.video, source.video[:4, :2])
    assert np.array_equal(fewer.audio, source.audio[:4, :, :8])
    more = BatchBuilder(dataset, segments, segment_trs=4, video_frames=5, audio_frames=11).build([0])
    assert np.array_equal(more.video[:, 4], source.video[:4, 2])
    assert np.array_equal(more.audio[:, :, 10], source.audio[:4, :, 8])
    assert not more.video_mask[:, 3:].any()
    assert not more.audio_mask[:, 9:].any()
