"""Preparing whole BIDS folders: what comes out is on the TR grid, once, and survives kills and full disks."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest

from giblet.config.schema import AudioConfig, BoldConfig, SplitConfig, TextConfig, VideoConfig
from giblet.data import transfer
from giblet.data.audio import AudioProcessor
from giblet.data.prepare import prepare
from giblet.data.prepared import PreparedDataset
from giblet.data.scans import Scans
from giblet.data.text import SentenceEncoder
from giblet.data.video import sample_pictures
from giblet.data.workspace import Workspace, flush
from giblet.errors import ConfigError, DataError, DependencyError, OutOfSpaceError
from giblet.storage import LocalStorage
from tests.support.bids import ball, make_bids, make_bold, save_bold, tiny_config, write_events
from tests.support.media import grey

TINY = {"trs": 60, "tr_seconds": 3.0, "film_seconds": 12.0, "fps": 8, "onset": 4.5}


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    return make_bids(tmp_path_factory.mktemp("bids"), **TINY)


@pytest.fixture(scope="module")
def dataset(bids, tmp_path_factory):
    return prepare(tiny_config(bids, tmp_path_factory.mktemp("cache")))


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_cores_do_not_change_a_byte_and_python_and_torch_stay_as_they_were(bids, dataset, tmp_path, monkeypatch):
    import torch

    def of_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    def settings() -> tuple[object, ...]:
        return torch.get_num_threads(), of_a_new_thread(), sys.getswitchinterval(), gc.isenabled(), gc.get_threshold()

    before = settings()
    for cores in (1, 4):
        monkeypatch.setattr("giblet.data.prepare.usable_processors", lambda cores=cores: cores)
        again = prepare(tiny_config(bids, tmp_path / str(cores)))
        assert {name: digest for name, digest in _hashes(again.path).items() if name.endswith(".npy")} == {
            name: digest for name, digest in _hashes(dataset.path).items() if name.endswith(".npy")
        }
        assert settings() == before


def test_on_one_core_nothing_long_runs_beside_anything_long(bids, tmp_path, monkeypatch):
    at_work, most, seen = [], [], set()

    def alone(work):
        def slowly(*given, **named):
            at_work.append(work.__name__)
            most.append(len(at_work))
            seen.add(work.__name__)
            time.sleep(0.05)
            try:
                return work(*given, **named)
            finally:
                at_work.remove(work.__name__)

        return slowly

    def pictures(*given, **named):
        made = sample_pictures(*given, **named)
        following = alone(made.__next__)
        with contextlib.suppress(StopIteration):
            while True:
                yield following()

    monkeypatch.setattr("giblet.data.prepare.usable_processors", lambda: 1)
    monkeypatch.setattr("giblet.data.prepare.sample_pictures", pictures)
    for owner, name in ((AudioProcessor, "_hear"), (Scans, "write"), (SentenceEncoder, "encode")):
        monkeypatch.setattr(owner, name, alone(getattr(owner, name)))
    prepare(tiny_config(bids, tmp_path))
    assert seen == {"__next__", "_hear", "write", "encode"}
    assert max(most) == 1


def test_what_is_written_is_on_disk_and_no_longer_in_memory(tmp_path):
    workspace = Workspace(tmp_path, "0" * 64)
    workspace.begin()
    array = workspace.array("video", (2**24,), "uint8")
    array[:] = 7

    def resident_kb() -> int:
        maps = Path("/proc/self/smaps").read_text().split("video.npy", 1)[1]
        return int(maps.split("Rss:", 1)[1].split()[0])

    assert resident_kb() > 2**13
    flush(array)
    assert resident_kb() == 0
    assert (np.load(workspace.folder / "video.npy") == 7).all()


def test_frames_are_where_the_clock_says(dataset):
    first = dataset.presentations[0]
    assert dataset.manifest.dimensions.video_frames == 12
    assert dataset.manifest.dimensions.audio_frames == 225
    assert first.stimulus_mask.tolist() == [False] + [True] * 5 + [False] * 54
    assert first.video_mask.sum(axis=1)[:7].tolist() == [0, 6, 12, 12, 12, 6, 0]
    assert first.audio_mask.sum(axis=1)[:7].tolist() == [0, 113, 225, 225, 225, 112, 0]
    for tr in range(1, 6):
        for slot in np.flatnonzero(first.video_mask[tr]):
            frame = 2 * (slot + (0 if tr == 1 else 6 + 12 * (tr - 2)))
            assert abs(first.video[tr, slot].mean() - grey(frame)) < 4, (tr, slot)
    assert np.array_equal(first.video[1, 11], first.video[1, 5])
    assert not first.video[0].any()
    assert np.array_equal(first.audio[5, :, 224], first.audio[5, :, 111])


def test_words_are_where_the_clock_says(dataset):
    first = dataset.presentations[0]
    assert first.text_mask[:7].tolist() == [False, True, True, True, True, True, False]
    assert not first.text[0].any()
    ball, rabbit, rain = (first.text[tr].astype(float) for tr in (1, 3, 5))
    mixed = first.text[2].astype(float)  # 0.5 s of the ball, 2 s of the rabbit
    assert np.allclose(mixed, (0.5 * ball + 2 * rabbit) / 2.5, atol=2e-3)
    assert np.array_equal(first.text[4].astype(float), rain)


def test_bold_is_the_brain_s_scaled_on_training_rows(dataset, bids):
    assert [subject.voxels for subject in dataset.manifest.subjects] == [int(ball().sum())] * 2
    assert dataset.manifest.split == {"train": ((0, 0, 41),), "validation": ((0, 51, 60),), "test": ((1, 0, 60),)}
    bold = dataset.presentations[0].bold["sub-02"]
    assert np.allclose(bold[:41].std(axis=0, ddof=1), 1, atol=1e-4)
    mask = nibabel.load(dataset.path / "masks" / "sub-02.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj) > 0, ball())
    raw = nibabel.load(bids / "sub-02/func/sub-02_task-movie_run-1_bold.nii.gz").get_fdata()[ball()].T
    correlations = [np.corrcoef(bold[:41, v], raw[:41, v])[0, 1] for v in range(bold.shape[1])]
    assert np.median(correlations) > 0.85
    assert min(correlations) > 0.6


def test_the_manifest_is_whole_and_says_what_is_made_up(dataset):
    manifest = dataset.manifest
    assert manifest.content_hash == dataset.path.name
    assert manifest.simulated
    assert any("random" in note for note in manifest.notes)
    assert {file.path for file in manifest.provenance.inputs} >= {"stimuli/film1.mp4", "stimuli/film1.tsv"}
    assert "/" not in str(manifest.settings["text"]["model"])
    dataset.check_hashes()
    assert {p.name for p in dataset.path.iterdir()} == {"manifest.json", "masks", "presentations"}


def test_defect_17_one_copy_of_a_stimulus_in_its_small_type(dataset):
    arrays = list(dataset.path.rglob("video.npy"))
    assert len(arrays) == 2
    video = dataset.presentations[0].video
    assert isinstance(video, np.memmap)
    assert video.dtype == np.uint8
    assert dataset.presentations[0].audio.dtype == np.int16


def test_nothing_is_computed_twice(dataset, bids, monkeypatch):
    monkeypatch.setattr("giblet.data.prepare.make_plan", None)
    assert prepare(tiny_config(bids, dataset.path.parent)).path == dataset.path


def test_other_inputs_or_settings_have_another_hash_and_paths_do_not_matter(dataset, bids, tmp_path):
    from giblet.data.bids import find_runs
    from giblet.data.provenance import gather_inputs

    def hashed(folder, **changes):
        return gather_inputs(find_runs(folder), tiny_config(folder, tmp_path, **changes)).content_hash

    copy = shutil.copytree(bids, tmp_path / "copy")
    original = hashed(bids)
    assert original == hashed(copy) == dataset.manifest.content_hash
    assert hashed(bids, segment_trs=4) == original
    assert hashed(bids, video=VideoConfig(height=6, width=8, frame_skip=1)) != original
    assert hashed(bids, bold=BoldConfig(high_pass_hz=0.02)) != original
    assert hashed(bids, split=SplitConfig(test_runs=("1",))) != original
    (copy / "stimuli/film1.tsv").write_text((copy / "stimuli/film1.tsv").read_text().replace("ball", "bell"))
    assert hashed(copy) != original


def test_defect_18_nothing_fitted_sees_tr_s_that_do_not_train(dataset, bids, tmp_path):
    other = shutil.copytree(bids, tmp_path / "bids")
    for subject in (1, 2):
        for run, kept in (("1", 41), ("2", 0)):
            path = other / f"sub-0{subject}/func/sub-0{subject}_task-movie_run-{run}_bold.nii.gz"
            data = nibabel.load(path).get_fdata().astype(np.float32)
            data[..., kept:] = 3 * make_bold(60 - kept, seed=99)
            save_bold(path, data, tr_seconds=3.0)
    changed = prepare(tiny_config(other, tmp_path / "cache"))
    for subject in dataset.subjects:
        assert np.array_equal(changed.presentations[0].bold[subject][:41], dataset.presentations[0].bold[subject][:41])
    assert changed.manifest.statistics == dataset.manifest.statistics
    assert _hashes(changed.path / "masks") == _hashes(dataset.path / "masks")


def test_a_subject_without_a_run_and_a_shorter_scan_are_masked(bids, tmp_path):
    other = shutil.copytree(bids, tmp_path / "bids")
    (other / "sub-02/func/sub-02_task-movie_run-2_bold.nii.gz").unlink()
    save_bold(other / "sub-01/func/sub-01_task-movie_run-1_bold.nii.gz", make_bold(52, seed=10), tr_seconds=3.0)
    made = prepare(tiny_config(other, tmp_path / "cache"))
    assert sorted(made.presentations[1].bold) == ["sub-01"]
    assert made.presentations[0].trs == 60
    assert made.presentations[0].bold_mask["sub-01"].tolist() == [True] * 52 + [False] * 8
    assert not made.presentations[0].bold["sub-01"][52:].any()


SCRIPT = """
import sys
from pathlib import Path
import giblet.data.prepare as preparing
from tests.support.bids import tiny_config
preparing.PIECE_SECONDS = 2
preparing.prepare(tiny_config(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def _start(bids: Path, cache: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", SCRIPT, str(bids), str(cache)], env={**os.environ})


def _records(cache: Path) -> set[str]:
    return {f"{path.name} {path.read_bytes()!r}" for path in cache.glob("*.partial/.done/*") if path.suffix != ".new"}


def test_killed_and_restarted_it_goes_on_to_the_same_bytes(dataset, bids, tmp_path):
    kills = 0
    while kills < 2:
        before = len(_records(tmp_path))
        process = _start(bids, tmp_path)
        while process.poll() is None and len(_records(tmp_path)) <= before + kills:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
        assert not (tmp_path / dataset.path.name).exists(), "half of a dataset has a whole one's name"
    assert kills, "the process was never caught in the middle"
    finished = prepare(tiny_config(bids, tmp_path))
    assert _hashes(finished.path) == _hashes(dataset.path)
    assert not list(tmp_path.glob("*.partial"))


def test_what_was_finished_is_not_done_again(dataset, bids, tmp_path, monkeypatch):
    import giblet.data.prepare as preparing

    def fail(*_args, **_kwargs):
        raise RuntimeError("stop here")

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "build_manifest", fail)
        with pytest.raises(RuntimeError, match="stop here"):
            prepare(tiny_config(bids, tmp_path))
    for name in ("sample_pictures", "film_sound", "read_annotations"):
        monkeypatch.setattr(preparing, name, fail)
    monkeypatch.setattr("giblet.data.bold.extract", fail)
    assert _hashes(prepare(tiny_config(bids, tmp_path)).path) == _hashes(dataset.path)


def test_two_preparers_at_once_make_one_dataset(dataset, bids, tmp_path):
    processes = [_start(bids, tmp_path) for _ in range(2)]
    assert [process.wait(timeout=280) for process in processes] == [0, 0]
    assert _hashes(tmp_path / dataset.path.name) == _hashes(dataset.path)


def test_a_failure_in_one_part_ends_the_others_with_its_own_error(bids, tmp_path):
    other = shutil.copytree(bids, tmp_path / "bids")
    path = other / "sub-02/func/sub-02_task-movie_run-2_bold.nii.gz"
    data = nibabel.load(path).get_fdata().astype(np.float32)
    data[4, 4, 3, 7] = np.nan
    save_bold(path, data, tr_seconds=3.0)
    with pytest.raises(DataError, match="volume 7: 1 of"):
        prepare(tiny_config(other, tmp_path / "cache"))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix not in (".partial", ".lock")]


def test_a_constant_tail_is_noted(bids, tmp_path):
    other = shutil.copytree(bids, tmp_path / "bids")
    path = other / "sub-01/func/sub-01_task-movie_run-1_bold.nii.gz"
    data = nibabel.load(path).get_fdata().astype(np.float32)
    data[..., -4:] = 0
    save_bold(path, data, tr_seconds=3.0)
    made = prepare(tiny_config(other, tmp_path / "cache"))
    assert made.presentations[0].bold_mask["sub-01"][-5:].tolist() == [True] + [False] * 4
    assert any("sub-01 task-movie_run-1: 4 volumes" in note for note in made.manifest.notes)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"bids": None}, ConfigError, "data.bids is not set"),
        ({"text": TextConfig(model="/absent/model")}, DependencyError, "data.text.model"),
        ({"audio": AudioConfig(weights="/absent/encodec.th")}, DependencyError, "data.audio.weights"),
        ({"bold": BoldConfig(mask="/absent/mask.nii.gz")}, DataError, "data.bold.mask"),
    ],
)
def test_what_is_missing_is_said_before_any_work(bids, tmp_path, changes, error, said):
    with pytest.raises(error, match=said):
        prepare(tiny_config(bids, tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_two_films_in_a_run(bids, tmp_path):
    other = shutil.copytree(bids, tmp_path / "bids")
    for subject in ("01", "02"):
        events = other / f"sub-{subject}/func/sub-{subject}_task-movie_run-1_events.tsv"
        write_events(events, [(0, 6, "film1.mp4"), (7.5, "n/a", "film2.mp4")])
    made = prepare(tiny_config(other, tmp_path / "cache"))
    first = made.presentations[0]
    assert first.video_mask.sum(axis=1)[:8].tolist() == [12, 12, 6, 12, 12, 12, 6, 0]
    assert abs(first.video[2, 0].mean() - grey(0)) < 4
    assert "training runs show too: stimuli/film2.mp4" in " ".join(made.manifest.notes)


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 400 kB: a tmpfs where we may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_that_looks_whole_and_more_room_lets_it_go_on(dataset, bids, tiny_disk):
    with pytest.raises(OutOfSpaceError, match="has no room left"):
        prepare(tiny_config(bids, tiny_disk))
    assert not (tiny_disk / dataset.path.name).exists()
    subprocess.run(["mount", "-o", "remount,size=20m", str(tiny_disk)], check=True)
    assert _hashes(prepare(tiny_config(bids, tiny_disk)).path) == _hashes(dataset.path)


def test_a_disk_too_small_for_the_pictures_is_refused_at_once(bids, tiny_disk):
    config = tiny_config(bids, tiny_disk, video=VideoConfig(height=60, width=80, frame_skip=1))
    with pytest.raises(OutOfSpaceError, match="the pictures alone need"):
        prepare(config)


def test_a_limit_on_file_sizes_is_a_full_disk(bids, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutOfSpaceError, match="has no room left"):
            prepare(tiny_config(bids, tmp_path / "cache"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_published_and_fetched_it_is_the_same(dataset, tmp_path):
    storage = LocalStorage(str(tmp_path / "store"))
    assert not transfer.is_published(storage, dataset.manifest.content_hash)
    assert transfer.publish(dataset, storage) > 0
    assert transfer.publish(dataset, storage) == 0
    fetched = transfer.fetch(storage, dataset.manifest.content_hash, tmp_path / "cache")
    assert isinstance(fetched, PreparedDataset)
    assert _hashes(fetched.path) == _hashes(dataset.path)
    assert transfer.fetch(storage, dataset.manifest.content_hash, tmp_path / "cache").path == fetched.path


def test_other_bytes_in_storage_are_refused(dataset, tmp_path):
    storage = LocalStorage(str(tmp_path / "store"))
    content_hash = dataset.manifest.content_hash
    with pytest.raises(DataError, match="has no prepared dataset"):
        transfer.fetch(storage, content_hash, tmp_path / "cache")
    transfer.publish(dataset, storage)
    key = transfer.dataset_key(content_hash, "presentations/000/text.npy")
    content = bytearray(storage.get(key))
    content[-1] ^= 1
    storage.put(key, bytes(content))
    with pytest.raises(DataError, match=r"text\.npy is not what its manifest recorded"):
        transfer.fetch(storage, content_hash, tmp_path / "cache")
    assert not (tmp_path / "cache" / content_hash).exists()
    storage.delete(key)
    with pytest.raises(DataError, match="lacks"):
        transfer.fetch(storage, content_hash, tmp_path / "cache")
