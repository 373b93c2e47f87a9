"""The texts of the example data set: what BIDS asks for, who made the film, and that the brains are simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from giblet.data.example.nifti import write_text

SIMULATED = (
    "SIMULATED. Nobody was scanned: this BOLD was computed from the film by a stated forward model "
    "(derivatives/simulation/simulation.json). It says nothing about real brains."
)
ATTRIBUTION = (
    "Big Buck Bunny, (c) copyright 2008, Blender Foundation / www.bigbuckbunny.org, "
    "licensed under Creative Commons Attribution 3.0."
)
_MODEL = """\
The forward model, in words (letters and formulas: giblet/data/example/brain.py and docs/example-data.md of giblet):
features of the film (picture layout, motion energy, sound spectrum, meaning of the words, novelty) act through
spatially smooth weights where such features act in human brains, in part the same for all subjects and in part their
own; the response is compressed, blurred by a causal haemodynamic response that peaks after 4.5 to 6.5 s, and scaled;
AR(1) noise and slow drift are added. Some grey-matter voxels, and all that is not grey matter, carry no signal at all.
"""


def write_documents(destination: Path, subjects: int, attribution: str | None) -> None:
    """Every file that describes the data set as a whole; `attribution` of the film, None if giblet knows none."""
    film = attribution or "a file given by whoever wrote this data set; its licence is not known here."
    _json(destination / "dataset_description.json", _description(film, attribution is not None))
    _json(destination / "derivatives" / "simulation" / "dataset_description.json", _derivative())
    write_text(destination / "README", _readme(film))
    write_text(destination / "LICENSE", _licence(film))
    write_text(destination / "CHANGES", "1.0.0\n  - Written by `giblet example`. Simulated.\n")
    write_text(destination / ".bidsignore", "*_mask.nii.gz\nstimuli/*.tsv\n")
    rows = [f"sub-{number:02d}\tsimulated" for number in range(1, subjects + 1)]
    write_text(destination / "participants.tsv", "\n".join(["participant_id\torigin", *rows]) + "\n")
    _json(destination / "participants.json", {"origin": {"Description": SIMULATED}})


def bold_sidecar(task: str, tr_seconds: float, trs: int) -> str:
    """JSON beside a BOLD run."""
    sidecar = {
        "TaskName": task,
        "RepetitionTime": tr_seconds,
        "TaskDescription": "Watching and hearing the film named in the events' stim_file.",
        "Simulated": True,
        "Description": SIMULATED,
        "Manufacturer": "none (simulated)",
        "NumberOfVolumes": trs,
    }
    return json.dumps(sidecar, indent=2) + "\n"


def events(onset_seconds: float, duration_seconds: float, stimulus: str) -> str:
    """The one event of a run: the film, in seconds from the first volume's start."""
    row = f"{onset_seconds:.3f}\t{duration_seconds:.3f}\tfilm\t{stimulus}"
    return f"onset\tduration\ttrial_type\tstim_file\n{row}\n"


def _json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _description(film: str, is_known: bool) -> dict[str, Any]:
    return {
        "Name": "A real film and simulated brains (giblet example)",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "License": "CC-BY-3.0" if is_known else "see LICENSE",
        "Authors": ["giblet", *(["Blender Foundation (film)"] if is_known else [])],
        "Acknowledgements": film,
        "HowToAcknowledge": f"{SIMULATED} Film: {film}",
        "GeneratedBy": [{"Name": "giblet example", "Description": SIMULATED}],
        "Simulated": True,
    }


def _derivative() -> dict[str, Any]:
    return {
        "Name": "What the simulation knows: true signals and ceilings",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "giblet example", "Description": SIMULATED}],
        "Simulated": True,
    }


def _readme(film: str) -> str:
    return f"""A real film and simulated brains
================================

{SIMULATED}

{_MODEL}
Film: {film}
It is cut into one file a run, by copying: no frame was changed. The table beside each film file says what happens in it
(onset and duration in seconds of that file).

derivatives/simulation/ holds each run's true signal (percent of the baseline), each voxel's haemodynamic peak, and
each voxel's ceiling: the correlation with the scan, filtered as said in simulation.json, that a perfect model reaches
on average. A ceiling of 0 marks a voxel without signal.
"""


def _licence(film: str) -> str:
    return f"""stimuli/: {film}
The film was cut into parts without re-encoding; nothing else was changed.

Everything else in this folder, giblet's annotation table included, is licensed under CC BY 3.0 too:
https://creativecommons.org/licenses/by/3.0/
"""
