"""The whole evaluation on a tiny dataset: numbers, maps, the page; and that held-out BOLD is never fitted on."""

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import scipy.stats

from giblet.errors import DataError
from giblet.evaluate import baseline
from giblet.evaluate import evaluate as module
from giblet.evaluate.designs import Designs
from giblet.evaluate.evaluate import evaluate
from giblet.evaluate.filtering import RunFilter
from giblet.evaluate.results import RunFacts
from giblet.evaluate.subject import Rows
from tests.support.evaluation import tiny
from tests.support.html import Page

FACTS = RunFacts(
    run="tiny <run>",
    step=12,
    epoch=3,
    checkpoint="s3://bucket/runs/tiny",
    verdict="SAFE",
    statements=("Killed on purpose at step 7, resumed from step 6.",),
    history={
        "train": {"epoch": [1, 2, 3], "step": [4, 8, 12], "loss": [1.6, 1.4, 1.3], "bold": [1.0, 0.9, 0.8]},
        "validation": {"epoch": [1, 2, 3], "loss": [1.6, 1.5, 1.4], "bold": [1.0, 0.95, 0.9]},
    },
)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory):
    """A perfect but noisy predictor in the model's place: its score is known."""
    folder = tmp_path_factory.mktemp("evaluate")
    config, dataset, model = tiny(folder / "d")
    generator = np.random.default_rng(0)
    bold = np.concatenate([dataset.presentations[2].bold[s] for s in ("sub-01", "sub-02")], axis=1)
    predictions = {2: (bold + generator.normal(size=bold.shape)).astype(np.float32)}
    with pytest.MonkeyPatch.context() as patch:
        original = module._predict
        patch.setattr(module, "_predict", lambda d, m: (predictions, *original(d, m)[1:]))
        patch.setattr(baseline, "RANDOM_BAND_WEIGHTS", 2)
        result = evaluate(config, dataset, model, folder / "out", facts=FACTS)
    return dataset, predictions[2], result, model


def test_scores_equal_scipy_per_voxel_over_time(evaluated):
    dataset, prediction, result, _ = evaluated
    filtered = RunFilter.of(dataset, module.GibletConfig().data.bold).apply(prediction[:, :6], 2, "sub-01")
    bold = dataset.presentations[2].bold["sub-01"]
    expected = [scipy.stats.pearsonr(filtered[:, v], bold[:, v]).statistic for v in range(6)]
    model = result.summary["subjects"]["sub-01"]["model"]
    assert model["mean_r"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert model["mean_r_interval"][0] < model["mean_r"] < model["mean_r_interval"][1]
    assert model["significant_share"] == 1.0
    image = nibabel.load(result.folder / "maps" / "sub-01_desc-modelr_map.nii.gz")
    mask = nibabel.load(dataset.path / "masks" / "sub-01.nii.gz")
    np.testing.assert_array_equal(image.affine, mask.affine)
    np.testing.assert_allclose(np.asarray(image.dataobj)[np.asarray(mask.dataobj) > 0], expected, atol=1e-6)


def test_summary_is_strict_json_with_every_system(evaluated):
    _, _, result, model = evaluated
    saved = json.loads(result.json_path.read_text(), parse_constant=pytest.fail)
    assert saved == json.loads(json.dumps(result.summary))
    assert set(saved["scores"]) == {"model", "banded_ridge", "chance", "ceiling", "model_minus_ridge"}
    assert abs(saved["scores"]["chance"]["mean_r"]) < 0.2
    assert saved["scores"]["banded_ridge"]["mean_r"] > 0.3
    assert saved["simulated"] is True
    assert saved["dataset"]["trs"]["test"] == 80
    assert set(saved["subjects"]["sub-02"]["band_weights"]) == {"video", "motion", "audio", "text"}
    assert model.training, "the model is left in the mode in which it was"


def test_page_is_whole_self_contained_and_honest(evaluated):
    _, _, result, _ = evaluated
    text = result.report_path.read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.sources) == 6
    assert all(re.match(r"data:image/(png|svg\+xml);base64,", source) for source in page.sources)
    assert not re.search(r"https?://|url\(|@import", re.sub(r'src="data:[^"]+"', "", text))
    words = " ".join(page.words)
    for expected in (
        "simulated", "tiny <run>", "SAFE", "Killed on purpose at step 7", "synthetic, made by a test", "banded ridge",
        "false discovery rate", "sub-02", "Learning curves", "s3://bucket/runs/tiny", "80", "held out",
    ):  # fmt: skip
        assert expected.lower() in words.lower(), expected
    assert "nan" not in words.lower().split()


def prediction_of_baseline(dataset) -> np.ndarray:
    config = module.GibletConfig()
    predicted, _ = Designs(dataset, RunFilter.of(dataset, config.data.bold), config).predict(
        "sub-01", Rows.of(dataset, "sub-01", ("test",))
    )
    assert predicted is not None
    return predicted


def test_baseline_is_fitted_without_held_out_bold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(baseline, "RANDOM_BAND_WEIGHTS", 2)
    _, dataset, _ = tiny(tmp_path / "d")
    before = prediction_of_baseline(dataset)
    path = dataset.path / "presentations" / "002" / "bold-sub-01.npy"
    np.save(path, np.random.default_rng(1).normal(size=np.load(path).shape).astype(np.float32))
    np.testing.assert_array_equal(prediction_of_baseline(type(dataset).open(dataset.path)), before)
    path = dataset.path / "presentations" / "000" / "bold-sub-01.npy"
    np.save(path, np.random.default_rng(1).normal(size=np.load(path).shape).astype(np.float32))
    assert not np.allclose(prediction_of_baseline(type(dataset).open(dataset.path)), before)


def test_a_model_without_skill_scores_nothing_and_a_dead_voxel_is_left_out(tmp_path: Path):
    config, dataset, model = tiny(tmp_path / "d", subjects=(6,))
    path = dataset.path / "presentations" / "002" / "bold-sub-01.npy"
    bold = np.random.default_rng(4).normal(size=(80, 6)).astype(np.float32)
    bold[:, 2] = 0.0
    np.save(path, bold)
    result = evaluate(config, type(dataset).open(dataset.path), model, tmp_path / "out", with_baseline=False)
    subject = result.summary["subjects"]["sub-01"]
    assert subject["voxels_without_score"] == 1
    assert subject["banded_ridge"] is None
    assert subject["ceiling_kind"] == "unknown"
    assert abs(subject["model"]["mean_r"]) < 0.3
    assert subject["model"]["significant_share"] < 0.5
    assert "Unknown" in result.report_path.read_text() or "unknown" in result.report_path.read_text()


def test_nothing_held_out_is_refused(tmp_path: Path):
    config, dataset, model = tiny(tmp_path / "d")
    manifest = dataset.manifest.model_copy(update={"split": {**dataset.manifest.split, "test": ()}})
    with pytest.raises(DataError, match="holds no TRs out"):
        evaluate(config, type(dataset)(dataset.path, manifest, dataset.presentations), model, tmp_path / "out")


def test_nobody_scanned_in_the_held_out_run_is_refused(tmp_path: Path):
    config, dataset, model = tiny(tmp_path / "d", absent=((2, 0), (2, 1)))
    with pytest.raises(DataError, match="no subject"):
        evaluate(config, dataset, model, tmp_path / "out")


def test_a_subject_absent_from_the_held_out_run_is_passed_over(tmp_path: Path):
    config, dataset, model = tiny(tmp_path / "d", absent=((2, 0),))
    result = evaluate(config, dataset, model, tmp_path / "out", with_baseline=False)
    assert list(result.summary["subjects"]) == ["sub-02"]
