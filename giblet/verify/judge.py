"""`verify`: read every byte back, judge, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from giblet.config.schema import CheckpointConfig, GibletConfig
from giblet.models.dimensions import Dimensions
from giblet.storage import Storage
from giblet.telemetry.logs import get_logger
from giblet.telemetry.progress import progress
from giblet.verify.checks import Evidence, complete, dead, finite, magnitude, structure
from giblet.verify.consistency import consistent
from giblet.verify.expectation import Expectation
from giblet.verify.opening import checkpoint_ref, open_source
from giblet.verify.report import Check, Group, Report
from giblet.verify.signing import signed
from giblet.verify.sources import DamagedError, Source
from giblet.verify.stream import StreamResult, stream

log = get_logger(__name__)


def verify(
    url: str,
    *,
    storage: Storage | None = None,
    access: CheckpointConfig | None = None,
    config: GibletConfig | None = None,
    magnitude_limit: float | None = None,
    restore: bool = False,
    dataset: str | Path | None = None,
    device: str = "cpu",
    distributions: bool = False,
    public_key: Ed25519PublicKey | None = None,
) -> Report:
    """Judge the checkpoint at `url`: a run (its newest), a checkpoint's folder or manifest, or another tool's file.

    `config` is what the checkpoint should match (None: the one recorded in it); `access` how its storage is reached
    (None: as `config` says), unless it is `storage`; `magnitude_limit` as `verify.magnitude_limit` (None: the
    configuration's). `restore` also loads it into the model and scores it on `dataset` (None: the prepared dataset that
    it names, where it is on this machine). Memory stays under 600 MB unless `restore` is asked for. `distributions`
    also counts how each tensor's values lie, for the page.
    With `public_key` there is one more check, `signed`: whether its manifest is signed by that key.

    Raises `CheckpointError` if there is no checkpoint or it is refused, and storage's own errors: then nothing was
    judged.
    """
    begun = time.perf_counter()
    if access is None and config is not None:
        access = config.checkpoint
    try:
        source = open_source(url, storage, access)
    except DamagedError as error:
        return _unlistable(url, error, time.perf_counter() - begun)
    config = config if config is not None else recorded_config(source)
    limit = (config or GibletConfig()).verify.magnitude_limit if magnitude_limit is None else magnitude_limit
    total = sum(item.size_bytes for item in source.objects)
    with progress("verify", total=total, unit="bytes") as bar:
        result = stream(source, limit, bar=bar, distributions=distributions)
    checks, scores = _judged(source, result, config, limit, restore=restore, dataset=dataset, device=device)
    if public_key is not None:
        checks.append(signed(source, public_key))
    ref = checkpoint_ref(source)
    report = Report(
        url=source.url,
        kind=source.kind,
        step=source.step,
        checks=tuple(checks),
        records=source.tensors,
        statistics=result.statistics,
        groups=_groups(source, result),
        bytes_read=result.bytes_read,
        seconds=time.perf_counter() - begun,
        run=ref.run if ref is not None else None,
        attempt=ref.attempt if ref is not None else None,
        notes=source.notes,
        scores=scores,
        state={name: value for name, value in source.state.items() if name not in ("config", "history")},
        judged_unix_seconds=time.time(),
        manifest_bytes=source.manifest_bytes,
        kinds=_kinds(source),
        distributions=result.distributions,
    )
    _tell(report)
    return report


def _judged(
    source: Source,
    result: StreamResult,
    config: GibletConfig | None,
    limit: float,
    *,
    restore: bool,
    dataset: str | Path | None,
    device: str,
) -> tuple[list[Check], dict[str, float]]:
    """Every check of what was read, and what the restored model scores."""
    evidence = gather(source, result, config, limit)
    checks = [check(evidence) for check in (complete, structure, finite, magnitude, dead, consistent)]
    if not restore:
        skipped = [Check(name, "skipped", "not asked for (verify.restore)") for name in ("restores", "scores")]
        return [*checks, *skipped], {}
    from giblet.verify.restoring import restoring_checks  # brings in what scores, which the rest does without

    dimensions, tr_seconds = _facts(source.state)
    more, scores = restoring_checks(evidence, dimensions, tr_seconds, dataset, device)
    return [*checks, *more], scores


def gather(source: Source, result: StreamResult, config: GibletConfig | None, limit: float) -> Evidence:
    """All that the checks look at."""
    dimensions, tr_seconds = _facts(source.state)
    schedule = source.state.get("schedule")
    steps = schedule.get("steps_per_epoch") if isinstance(schedule, Mapping) else None
    return Evidence(
        source=source,
        result=result,
        expectation=Expectation.of(config, dimensions, source.step, _hrf_taps(config, tr_seconds)),
        config=config,
        magnitude_limit=limit,
        steps_per_epoch=steps if isinstance(steps, int) else None,
    )


def recorded_config(source: Source) -> GibletConfig | None:
    """The configuration in the checkpoint's own state, or in the run's `run.json`; None where there is none."""
    for candidate in (source.state.get("config"), source.config):
        if isinstance(candidate, Mapping):
            try:
                return GibletConfig.model_validate(dict(candidate))
            except ValidationError:
                continue
    return None


def _facts(state: Mapping[str, Any]) -> tuple[Dimensions | None, float | None]:
    """The data's dimensions and its TR in seconds, from what training recorded of its dataset."""
    recorded = state.get("dataset")
    if not isinstance(recorded, Mapping):
        return None, None
    widths = recorded.get("dimensions")
    dimensions = None
    if isinstance(widths, Mapping):
        names = {"height": "video_height", "width": "video_width"}
        try:
            dimensions = Dimensions(**{names.get(str(name), str(name)): int(value) for name, value in widths.items()})
        except (TypeError, ValueError):
            dimensions = None
    tr_seconds = recorded.get("tr_seconds")
    return dimensions, float(tr_seconds) if isinstance(tr_seconds, (int, float)) and tr_seconds > 0 else None


def _hrf_taps(config: GibletConfig | None, tr_seconds: float | None) -> int | None:
    """How many TRs a learned haemodynamic kernel covers; None for a model without one."""
    if config is None or tr_seconds is None or config.data.hrf.kind != "fir":
        return None
    from giblet.data.hrf import kernel_taps  # scipy, for its integral

    return kernel_taps(tr_seconds, config.data.hrf.duration_seconds)


def _kinds(source: Source) -> dict[str, str]:
    """Which group each tensor belongs to: model, optimizer, other."""
    return {
        name: "model" if name in source.weights else "optimizer" if name.startswith("optim") else "other"
        for name in source.tensors
    }


def _groups(source: Source, result: StreamResult) -> dict[str, Group]:
    members: dict[str, list[str]] = {}
    for name, kind in _kinds(source).items():
        members.setdefault(kind, []).append(name)
    return {kind: _group(source, result, names) for kind, names in members.items()}


def _group(source: Source, result: StreamResult, names: list[str]) -> Group:
    found = [result.statistics[name] for name in names]
    return Group(
        tensors=len(names),
        elements=sum(source.tensors[name].elements for name in names),
        nan_elements=sum(one.nan for one in found),
        inf_elements=sum(one.inf for one in found),
        zero_elements=sum(one.zero for one in found),
        over_limit_elements=sum(one.over_limit for one in found),
        zero_tensors=tuple(name for name, one in zip(names, found, strict=True) if one.all_zero),
    )


def _unlistable(url: str, error: DamagedError, seconds: float) -> Report:
    """A checkpoint that is there, and so damaged that its contents cannot be listed."""
    skipped = [
        Check(name, "skipped", "its contents cannot be listed")
        for name in ("structure", "finite", "magnitude", "dead", "consistent", "restores", "scores")
    ]
    checks = (Check("complete", "failed", error.message), *skipped)
    return Report(url, "unknown", None, checks, {}, {}, {}, 0, seconds, judged_unix_seconds=time.time())


def _tell(report: Report) -> None:
    failed = [check.name for check in report.checks if check.status == "failed"]
    say = log.error if failed else log.info
    say(
        "verified",
        verdict=report.verdict,
        url=report.url,
        step=report.step,
        gigabytes=round(report.bytes_read / 1e9, 3),
        seconds=round(report.seconds, 2),
        **({"failed": ",".join(failed)} if failed else {}),
    )
