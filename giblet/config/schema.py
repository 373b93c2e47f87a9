"""The trainer's configuration: the `config:` key of a values file, snake_case, frozen, nothing unknown allowed.

This file is the only place where a setting is described. `values.schema.json` and `configs/README.md` are
generated from it (`make generated`). It imports no torch, so that the chart's checks stay light. Units stand in
names; None means what the description says it means.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

CODEBOOKS_BY_BANDWIDTH_KBPS = {1.5: 2, 3.0: 4, 6.0: 8, 12.0: 16, 24.0: 32}
"""EnCodec 24 kHz: residual codebooks at each bandwidth (75 frames a second, 10 bits each)."""

AUDIO_FRAMES_PER_SECOND = 75

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


def _known_bandwidth(value: float) -> float:
    if value not in CODEBOOKS_BY_BANDWIDTH_KBPS:
        raise ValueError(f"{value:g} kbps is not a bandwidth of the 24 kHz codec; allowed: 1.5, 3, 6, 12, 24")
    return value


Bandwidth = Annotated[
    float, AfterValidator(_known_bandwidth), WithJsonSchema({"type": "number", "enum": [1.5, 3.0, 6.0, 12.0, 24.0]})
]
RunName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9_.]{0,61}[a-z0-9])?$")]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class RunConfig(Section):
    """Which run this is."""

    name: RunName = Field(
        "giblet", description="Name of the run: its folder under `checkpoint.url`. Unique per bucket."
    )
    seed: int = Field(7, ge=0, lt=2**31, description="Seeds initial weights, the order of samples, and dropout.")


class VideoConfig(Section):
    """Frames on the TR grid."""

    height: Count = Field(90, description="Height of a frame in pixels after area-averaged scaling.")
    width: Count = Field(160, description="Width of a frame in pixels after area-averaged scaling.")
    frame_skip: Count = Field(
        4, description="Keep every n-th frame of the film. The film's own frame rate is read from it."
    )


class AudioConfig(Section):
    """EnCodec codes on the TR grid."""

    backend: Literal["encodec", "transformers"] = Field(
        "encodec",
        description="Which package runs the codec: `encodec` (0.1.1, CC BY-NC 4.0) or `transformers` (Apache 2.0).",
    )
    weights: str = Field(
        "download",
        description="A local path to the codec's weights; `download` to let the package fetch them; `random` for tests "
        "(every artefact made with it says so).",
    )
    bandwidth_kbps: Bandwidth = Field(
        3.0, description="Codec bandwidth: 1.5, 3, 6, 12 or 24 kbps have 2, 4, 8, 16 or 32 codebooks."
    )

    @property
    def codebooks(self) -> int:
        """How many residual codebooks the bandwidth has."""
        return CODEBOOKS_BY_BANDWIDTH_KBPS[self.bandwidth_kbps]


class TextConfig(Section):
    """Sentence embeddings on the TR grid."""

    model: str = Field(
        "BAAI/bge-large-en-v1.5",
        description="A sentence-transformers model by local path, by hub name, or `package:NAME` for one that a Python "
        "package carries.",
    )
    layout: Literal["mean", "concat3"] = Field(
        "mean",
        description="`mean`: overlap-weighted mean of the segments in a TR; `concat3`: the first three side by side.",
    )


class BoldConfig(Section):
    """From NIfTI to voxels by TRs."""

    detrend: bool = Field(True, description="Remove a linear trend from each voxel within each run.")
    standardize: bool = Field(True, description="z-score each voxel within each run.")
    high_pass_hz: NonNegative = Field(
        0.01, description="High-pass cut-off (cosine drift regressors) within each run; 0 turns it off."
    )
    mask: str | None = Field(
        None,
        description="Path of a brain mask for all subjects. None: the masks beside the scans where every run has one "
        "(fMRIPrep), else the data set's anatomical mask if any, intersected with an EPI mask of training runs.",
    )
    shift_trs: int = Field(
        0,
        ge=0,
        description="By how many TRs the data set's BOLD was already moved earlier before giblet saw it.",
    )


class HrfConfig(Section):
    """Where the haemodynamic lag is modelled: in the BOLD head, exactly once, causally."""

    kind: Literal["fir", "convolve", "none"] = Field(
        "convolve",
        description="`convolve`: the head's output is convolved with the canonical HRF; `fir`: with one learned kernel "
        "per voxel, which starts canonical; `none`: not at all (data already shifted).",
    )
    duration_seconds: Positive = Field(24.0, description="Length of the kernel.")


class SplitConfig(Section):
    """Which TRs train, validate and test. Contiguous, with gaps, never at random."""

    test_runs: tuple[str, ...] | None = Field(
        None,
        description="BIDS `run` labels held out whole for testing. None: the last run, where there are at least two; "
        "else the last block of the only run.",
    )
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(
        0.15, description="Share of the remaining time used for validation, in contiguous blocks."
    )
    gap_seconds: Annotated[float, Field(ge=30.0)] = Field(
        30.0, description="Time left unused between blocks of different use."
    )


class DataConfig(Section):
    """From BIDS to a prepared dataset."""

    bids: str | None = Field(
        None, description="BIDS folder to prepare from. None: `prepared` must name a prepared dataset."
    )
    prepared: str | None = Field(
        None,
        description="A prepared dataset: a folder or an `s3://` address. None: found by content hash under "
        "`cache_dir` or `checkpoint.url`/datasets.",
    )
    cache_dir: str = Field("work/datasets", description="Local folder for prepared datasets; one copy a node.")
    task: str | None = Field(None, description="BIDS task label. None: the only task there is.")
    subjects: tuple[str, ...] | None = Field(None, description="BIDS subject labels without `sub-`. None: all.")
    segment_trs: Count = Field(
        16, description="TRs in one sample: consecutive TRs of one run, for which the loss is computed."
    )
    video: VideoConfig = VideoConfig()
    audio: AudioConfig = AudioConfig()
    text: TextConfig = TextConfig()
    bold: BoldConfig = BoldConfig()
    hrf: HrfConfig = HrfConfig()
    split: SplitConfig = SplitConfig()


class ModelConfig(Section):
    """Widths and losses of the multimodal autoencoder. The defaults are the production network's."""

    video_frames: Count | None = Field(
        None,
        description="Frames a TR that the network sees. None: as many as the prepared dataset has at most.",
    )
    video_height: Count | None = Field(None, description="Frame height in pixels. None: as prepared.")
    video_width: Count | None = Field(None, description="Frame width in pixels. None: as prepared.")
    audio_codebooks: Count | None = Field(None, description="Codebooks a frame. None: as prepared.")
    audio_frames: Count | None = Field(
        None,
        description="Codec frames a TR that the network sees; a TR's surplus frame is left out. None: all prepared.",
    )
    text_dimension: Count | None = Field(None, description="Text features a TR. None: as prepared.")
    voxels: Count | None = Field(
        None,
        description="Voxels of all subjects together, one block of the last layer a subject. None: as prepared.",
    )
    video_hidden: tuple[Count, Count, Count] = Field((4096, 2048, 1024), description="Widths of the video encoder.")
    audio_hidden: tuple[Count, Count] = Field((512, 256), description="Widths of the audio encoder.")
    text_hidden: tuple[Count, Count] = Field((512, 256), description="Widths of the text encoder.")
    encoder_hidden: tuple[Count, Count] = Field(
        (4096, 8000), description="Widths of the joint encoder's layers 5 and 6."
    )
    bottleneck: Count = Field(2048, description="Width of the bottleneck.")
    voxel_hidden: Count = Field(16384, description="Width of the layer between bottleneck and voxels.")
    decoder_hidden: tuple[Count, Count, Count, Count] = Field(
        (8000, 4096, 2048, 1536), description="Widths of the decoder's layers 8 to 11."
    )
    video_decoder_hidden: tuple[Count, Count] = Field(
        (2048, 4096), description="Widths of the video branch of layer 12."
    )
    audio_decoder_hidden: tuple[Count, Count] = Field(
        (2048, 2048), description="Widths of the audio branch of layer 12."
    )
    text_decoder_hidden: tuple[Count, Count] = Field((1024, 1024), description="Widths of the text branch of layer 12.")
    dropout_scale: Annotated[float, Field(ge=0.0, le=2.0)] = Field(
        1.0, description="Multiplies every dropout probability of the reference network (0.2 or 0.3)."
    )
    norm: Literal["batch", "layer"] = Field(
        "batch",
        description="`batch`: statistics over a micro-batch, the same whatever the world size; `layer`: LayerNorm.",
    )
    audio_objective: Literal["classify", "regress"] = Field(
        "classify",
        description="Predict each code's class (cross-entropy), or its number (the reference network's way).",
    )
    bold_weight: NonNegative = Field(1.0, description="Weight of the BOLD loss.")
    video_weight: NonNegative = Field(0.25, description="Weight of the video loss.")
    audio_weight: NonNegative = Field(0.25, description="Weight of the audio loss.")
    text_weight: NonNegative = Field(0.25, description="Weight of the text loss.")
    activation_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass to save memory."
    )


class TrainingConfig(Section):
    """The loop."""

    epochs: Count = Field(500, description="Passes over the training samples.")
    max_steps: Count | None = Field(None, description="Stop after so many optimizer steps. None: after `epochs`.")
    processes: Count = Field(1, description="Processes that `giblet train` starts on this machine, one a GPU.")
    global_batch_samples: Count = Field(
        8, description="Samples an optimizer step, over all ranks: constant whatever the world size."
    )
    micro_batch_samples: Count = Field(
        1, description="Samples of one forward pass on one rank. The number of passes a step follows from it."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto`: CUDA where there is a GPU.")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="Autocast of the forward pass. Master weights are always fp32."
    )
    sharding: Literal["fsdp", "ddp"] = Field(
        "fsdp", description="How more than one rank share the model: FSDP2 shards it, DDP copies it."
    )
    learning_rate: Positive = Field(1e-4, description="Peak learning rate.")
    minimum_learning_rate: NonNegative = Field(1e-6, description="Learning rate at the end of the cosine.")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(100, description="Steps of linear warm-up.")
    weight_decay: NonNegative = Field(0.01, description="AdamW's decoupled weight decay; not on biases and norms.")
    beta1: Probability = Field(0.9, description="AdamW's first decay rate.")
    beta2: Probability = Field(0.95, description="AdamW's second decay rate.")
    clip_grad_norm: NonNegative = Field(1.0, description="Clip the global gradient norm to this; 0 turns it off.")
    validate_every_epochs: Count = Field(1, description="Validate after every n-th epoch.")
    patience_epochs: Annotated[int, Field(ge=0)] = Field(
        50,
        description="Stop when validation has not improved for so many epochs; 0 turns early stopping off.",
    )
    minimum_improvement: NonNegative = Field(0.0, description="By how much validation must improve to count.")
    loader_workers: Annotated[int, Field(ge=0)] = Field(
        1, description="Batches prepared ahead by background threads; 0 loads in the loop."
    )


class CheckpointConfig(Section):
    """Where checkpoints go, how often, and how many stay."""

    url: str = Field(
        "work/runs",
        pattern=r"^(s3://[a-z0-9][-a-z0-9.]+(/.*)?|[^:]+)$",
        description="A folder, or `s3://bucket/prefix`.",
    )
    save_every_epochs: Annotated[int, Field(ge=0)] = Field(
        10, description="Save after every n-th epoch; 0: not by epoch."
    )
    save_every_steps: Annotated[int, Field(ge=0)] = Field(0, description="Save after every n-th step; 0: not by step.")
    save_best: bool = Field(True, description="Also save after an epoch whose validation is the best so far.")
    keep_last: Count = Field(3, description="How many of the newest checkpoints stay.")
    keep_every_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="Checkpoints of every n-th step stay for good; 0: none."
    )
    asynchronous: bool = Field(True, description="Train on while a save uploads.")
    endpoint_url: str | None = Field(
        None,
        pattern=r"^(https?://\S+|embedded)$",
        description="S3 endpoint. None: AWS_ENDPOINT_URL, else AWS itself. `embedded`: a SeaweedFS of giblet's own on "
        "this machine. Credentials come only from the environment, files or workload identity.",
    )
    embedded_dir: str = Field("work/s3", description="Folder of the embedded S3 server: its data, log and credentials.")
    region: str | None = Field(None, description="S3 region. None: as boto3 finds it.")
    ca_file: str | None = Field(None, description="PEM file of a custom certificate authority.")
    path_style: bool = Field(True, description="Address buckets in the path rather than in the host name.")
    server_side_encryption: Literal["AES256", "aws:kms"] | None = Field(None, description="Ask the server to encrypt.")
    connect_timeout_seconds: Positive = Field(10.0, description="Give up connecting after this.")
    read_timeout_seconds: Positive = Field(60.0, description="Give up waiting for an answer after this.")
    max_attempts: Count = Field(5, description="Tries of one request, with growing pauses.")

    @model_validator(mode="after")
    def _something_is_saved(self) -> CheckpointConfig:
        if self.save_every_epochs == 0 and self.save_every_steps == 0:
            raise ValueError(
                "save_every_epochs and save_every_steps are both 0, so that nothing would be saved before the end; "
                "set one of them to at least 1"
            )
        return self


class TelemetryConfig(Section):
    """Logs, metrics and the hang watch."""

    log_format: Literal["logfmt", "json"] = Field(
        "logfmt", description="One line an event, for people or for machines."
    )
    log_every_steps: Count = Field(1, description="Log every n-th step.")
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        9464, description="Port of `/metrics` on rank 0 of each node; 0 turns it off."
    )
    last_scrape_seconds: NonNegative = Field(
        60.0,
        description="How long a run that has ended waits at most for Prometheus to see its last numbers; it does not "
        "wait where nobody has asked for them before (but a pod whose run diverges does), nor when asked to stop.",
    )
    hang_seconds: Positive = Field(600.0, description="No step for so long counts as hung.")
    save_hang_seconds: Positive = Field(1800.0, description="The same while a save is in progress.")


class VerifyConfig(Section):
    """How a checkpoint is judged."""

    when: Literal["each", "last"] = Field("last", description="Verify each checkpoint as it lands, or the last one.")
    restore: bool = Field(True, description="Also load it into the model and run a held-out batch (needs the memory).")
    magnitude_limit: Positive = Field(1e6, description="A weight beyond this fails.")
    score_tolerance: Positive = Field(1e-3, description="Relative difference allowed of the recomputed held-out score.")
    poll_seconds: Positive = Field(10.0, description="How often the gate looks at the job and for new checkpoints.")
    patience_seconds: Positive = Field(
        300.0,
        description="How long the gate bears a missing job, and storage or an API server that does not answer.",
    )
    deadline_seconds: Positive | None = Field(
        None,
        description="The gate gives up on a job that has not ended by then, time spent suspended not counted. None: it "
        "waits as long as the job lives.",
    )
    signing_key: str | None = Field(
        None,
        description="A private Ed25519 key in PEM, with which the manifests of accepted checkpoints are signed as they "
        "are recorded. The chart mounts it from `verify.signing.existingSecret` and sets this. None: no signatures.",
    )
    pushgateway_url: str | None = Field(
        None, pattern=r"^https?://\S+$", description="A Prometheus Pushgateway that is told each verdict. None: none."
    )


class GibletConfig(Section):
    """Everything the trainer reads."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    verify: VerifyConfig = VerifyConfig()

    @model_validator(mode="after")
    def _combinations(self) -> GibletConfig:
        faults = []
        if self.data.hrf.kind != "none" and self.data.bold.shift_trs:
            faults.append(
                f"data.bold.shift_trs is {self.data.bold.shift_trs} and data.hrf.kind is {self.data.hrf.kind}: the lag "
                "would be counted twice; set data.hrf.kind to none, or shift_trs to 0 if the BOLD was not moved"
            )
        if self.training.global_batch_samples % self.training.micro_batch_samples:
            faults.append(
                f"training.global_batch_samples {self.training.global_batch_samples} is no multiple of "
                f"training.micro_batch_samples {self.training.micro_batch_samples}; every step must be whole"
            )
        if self.model.norm == "batch" and self.training.micro_batch_samples * self.data.segment_trs < 8:
            faults.append(
                f"model.norm is batch over training.micro_batch_samples x data.segment_trs = "
                f"{self.training.micro_batch_samples * self.data.segment_trs} TRs; its statistics need at least 8: "
                "raise either, or set model.norm to layer"
            )
        if self.training.minimum_learning_rate > self.training.learning_rate:
            faults.append("training.minimum_learning_rate is above training.learning_rate; lower it")
        if not any((self.model.bold_weight, self.model.video_weight, self.model.audio_weight, self.model.text_weight)):
            faults.append("all loss weights are 0, so there is nothing to learn; raise model.bold_weight")
        if faults:
            raise ValueError("; ".join(faults))
        return self
