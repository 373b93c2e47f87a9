"""One run: is it learning, is it fast, is it safe."""

from __future__ import annotations

from dashboards.parts import BLUE, GREEN, RED, YELLOW, Board, Marker

ONE = 'namespace="$namespace",run="$run"'
BY = "by (namespace, run)"


def board() -> Board:
    """The Run dashboard."""
    made = Board(
        "giblet-run", "giblet / Run", "One run: is it learning, is it fast, is it safe.", all_runs=False
    )  # fmt: skip
    markers(made)
    where_it_stands(made)
    is_it_learning(made)
    is_it_fast(made)
    is_it_safe(made)
    graphics_cards(made)
    return made


def markers(made: Board) -> None:
    """Starts, commits and verdicts, drawn over every panel."""
    for name, metric, colour in (
        ("start", "giblet_run_started_timestamp_seconds", "orange"),
        ("commit", "giblet_checkpoint_committed_timestamp_seconds", "blue"),
        ("verified", "giblet_verify_verified_timestamp_seconds", "green"),
    ):
        made.mark(Marker(name, f"max {BY} ({metric}{{{ONE}}}) * 1000", colour, "{{run}}"))


def where_it_stands(made: Board) -> None:
    """The numbers that somebody looks at once a day."""
    made.row("Where it stands")
    made.number(
        "Step", f"max(giblet_train_step{{{ONE}}})", "Optimizer steps done; falls back when a restart loses some.",
        decimals=0,
    )  # fmt: skip
    made.number(
        "Done", f"max(giblet_train_step{{{ONE}}}) / max(giblet_train_planned_steps{{{ONE}}})",
        "Share of the planned steps. Early stopping may end it sooner.", unit="percentunit", decimals=1,
    )  # fmt: skip
    made.number(
        "Time left",
        f"""(max {BY} (giblet_train_planned_steps{{{ONE}}}) - max {BY} (giblet_train_step{{{ONE}}}))
            / (giblet:train_steps:rate5m{{{ONE}}} > 0)""",
        "At the speed of the last five minutes.", unit="s",
    )  # fmt: skip
    made.number(
        "Goodput now", f"giblet:goodput:ratio1h{{{ONE}}}",
        "Share of the last hour's wall time (or of the run's age) that went into steps which are still part of it.",
        unit="percentunit", decimals=0, steps=((None, RED), (0.5, YELLOW), (0.8, GREEN)),
    )  # fmt: skip
    made.number(
        "Verdict", f"min(giblet_verify_verdict{{{ONE}}})", "Of the newest verification.",
        names={"0": ("UNSAFE", RED), "1": ("WARNINGS", YELLOW), "2": ("SAFE", GREEN)},
    )  # fmt: skip
    made.number("Ranks", f"max(giblet_train_world_size{{{ONE}}})", "Ranks that train.", decimals=0)
    made.number(
        "Loss", f'max(giblet_train_loss{{{ONE},term="loss"}})',
        "Of the newest step, relative to the variance: 1 is what a constant would reach.", decimals=4,
    )  # fmt: skip
    made.number(
        "Validation r", f"max(giblet_validation_bold_correlation{{{ONE}}})",
        "Mean over voxels of the correlation over validation TRs.", decimals=4,
    )  # fmt: skip
    made.number(
        "Newest commit", f"time() - max(giblet_checkpoint_committed_timestamp_seconds{{{ONE}}})",
        "Age of the newest committed checkpoint.", unit="s",
    )  # fmt: skip
    made.number(
        "Newest verified", f"time() - max(giblet_verify_verified_timestamp_seconds{{{ONE}}} > 0)",
        "Age of the newest verdict that accepted a checkpoint.", unit="s",
    )  # fmt: skip
    made.number(
        "Restarts", f"max(giblet:restarts:max{{{ONE}}})", "Since the run began.", decimals=0,
        steps=((None, GREEN), (1, YELLOW), (10, RED)),
    )  # fmt: skip
    made.number(
        "Steps lost", f"max(giblet_steps_lost_total{{{ONE}}})", "To restarts, since the run began, where known.",
        decimals=0, steps=((None, GREEN), (1, YELLOW)),
    )  # fmt: skip
    made.rows_of(
        "Alerts", {"state": (f'ALERTS{{{ONE},alertname=~"Giblet.*"}}', "none")}, "Pending and firing.",
        key=("alertname", "severity", "alertstate"), height=5,
    )  # fmt: skip


def is_it_learning(made: Board) -> None:
    """Losses, scores, gradient and learning rate."""
    made.row("Is it learning")
    made.lines(
        "Training loss by term", [(f"max by (term) (giblet_train_loss{{{ONE}}})", "{{term}}")],
        "Each relative to its variance; 'loss' is their weighted sum.",
    )  # fmt: skip
    made.lines(
        "Validation loss by term", [(f"max by (term) (giblet_validation_loss{{{ONE}}})", "{{term}}"),
                                    (f"max(giblet_validation_best_score{{{ONE}}})", "best loss")],
        "At the end of each n-th epoch.",
    )  # fmt: skip
    made.lines(
        "Validation correlation", [(f"max(giblet_validation_bold_correlation{{{ONE}}})", "mean r over voxels")],
        "Of predicted with measured BOLD, over validation TRs.",
    )  # fmt: skip
    made.lines(
        "Gradient norm", [(f"max(giblet_train_grad_norm{{{ONE}}})", "before clipping")], "Global, of each step.",
        log=True,
    )  # fmt: skip
    made.lines(
        "Learning rate", [(f"max(giblet_train_learning_rate{{{ONE}}})", "learning rate")], "Warm-up, then cosine."
    )
    made.lines(
        "Step and epoch", [(f"max(giblet_train_step{{{ONE}}})", "step"),
                           (f"max(giblet_checkpoint_committed_step{{{ONE}}})", "committed"),
                           (f"max(giblet_verify_verified_step{{{ONE}}})", "verified"),
                           (f"max(giblet_train_epoch{{{ONE}}})", "epoch")],
        "A step that falls back was lost to a restart.", smallest=0,
    )  # fmt: skip


def is_it_fast(made: Board) -> None:
    """Throughput, step time, waiting, goodput."""
    made.row("Is it fast")
    made.lines(
        "Samples a second", [(f"giblet:train_samples:rate5m{{{ONE}}}", "all ranks")], "Over five minutes.", smallest=0
    )
    made.lines(
        "Step seconds",
        [(f"histogram_quantile(0.5, sum by (le) (rate(giblet_train_step_seconds_bucket{{{ONE}}}[$__rate_interval])))",
          "median"),
         (f"histogram_quantile(0.95, sum by (le) (rate(giblet_train_step_seconds_bucket{{{ONE}}}[$__rate_interval])))",
          "95 %"),
         (f"giblet:train_step_seconds:mean5m{{{ONE}}}", "mean")],
        "With the wait for data. The dots are single steps.", unit="s", smallest=0, exemplars=True,
    )  # fmt: skip
    made.lines(
        "Waiting for data", [(f"giblet:train_data_wait:ratio5m{{{ONE}}}", "share of step time")],
        "Should stay below 2 %.", unit="percentunit", smallest=0, steps=((None, GREEN), (0.1, RED)),
    )  # fmt: skip
    made.lines(
        "Goodput", [(f"giblet:goodput:ratio1h{{{ONE}}}", "last hour"),
                    (f"""clamp_max(giblet:train_step:max{{{ONE}}} * giblet:train_step_seconds:mean1h{{{ONE}}}
                         / (time() - max {BY} (giblet_run_created_timestamp_seconds{{{ONE}}})), 1)""",
                     "since the run began")],
        "Share of wall time that went into steps which are still part of the run.", unit="percentunit", smallest=0,
    )  # fmt: skip
    made.lines(
        "Tokens and ranks", [(f"max(rate(giblet_train_tokens_total{{{ONE}}}[$__rate_interval]))", "EnCodec codes/s"),
                             (f"max(giblet_train_world_size{{{ONE}}})", "ranks")],
        "Elastic runs go on with fewer ranks.", smallest=0,
    )  # fmt: skip
    made.lines(
        "Validation seconds", [(f"max(giblet_validation_seconds{{{ONE}}})", "newest validation")],
        "Training stands still meanwhile.", unit="s", smallest=0,
    )  # fmt: skip


def is_it_safe(made: Board) -> None:
    """What a fault would cost now, and what faults have cost."""
    made.row("Is it safe")
    made.lines(
        "Steps at risk",
        [(f"max(giblet_train_step{{{ONE}}}) - max(giblet_checkpoint_committed_step{{{ONE}}})", "since the last commit"),
         (f"max(giblet_checkpoint_interval_steps{{{ONE}}})", "between saves")],
        "What a fault would cost now. Above twice the interval two saves are missing.", smallest=0,
    )  # fmt: skip
    made.lines(
        "Saves",
        [(f"max(rate(giblet_checkpoint_save_seconds_sum{{{ONE}}}[1h]) / (rate(giblet_checkpoint_save_seconds_count"
          f"{{{ONE}}}[1h]) > 0))", "until committed"),
         (f"max(rate(giblet_checkpoint_stall_seconds_sum{{{ONE}}}[1h]) / (rate(giblet_checkpoint_stall_seconds_count"
          f"{{{ONE}}}[1h]) > 0))", "training stands still")],
        "Mean of the last hour.", unit="s", smallest=0, exemplars=True,
    )  # fmt: skip
    made.lines(
        "Bytes committed", [(f"max(increase(giblet_checkpoint_bytes_total{{{ONE}}}[1h]))", "last hour")],
        "To storage, before retention.", unit="bytes", smallest=0,
    )  # fmt: skip
    made.lines(
        "Failed saves by cause",
        [(f"max by (cause) (increase(giblet_checkpoint_failures_total{{{ONE}}}[1h]))", "{{cause}}")],
        "In the last hour. A failed save never stops training by itself.", smallest=0,
    )  # fmt: skip
    made.lines(
        "Restarts by cause", [(f"max by (cause) (giblet_restarts_total{{{ONE}}})", "{{cause}}")],
        "Since the run began, by what ended the start before.", smallest=0, stacked=True,
    )  # fmt: skip
    made.lines(
        "Restart budget", [(f"min(giblet_restart_budget_left{{{ONE}}})", "left"),
                           (f"max(giblet_restart_budget{{{ONE}}})", "full")],
        "Restarts without a new commit that are left; at 0 the run ends.", smallest=0,
    )  # fmt: skip
    made.lines(
        "Requests to S3 by outcome",
        [(f"sum by (outcome) (rate(giblet_storage_requests_total{{{ONE}}}[$__rate_interval]))", "{{outcome}}")],
        "A second, all processes, each try counted. 'missing' and 'exists' are answers, not faults.",
        smallest=0, width=24,
    )  # fmt: skip


def graphics_cards(made: Board) -> None:
    """The GPUs of the run's pods; empty where there is no GPU or no dcgm-exporter."""
    made.row("GPUs (giblet's own, and dcgm-exporter's of the run's pods)")
    of_run = f"* on (namespace, pod) group_left () max by (namespace, pod) (giblet_train_world_size{{{ONE}}} > bool 0)"
    for title, metric, unit, help_text in (
        ("GPU utilisation", "DCGM_FI_DEV_GPU_UTIL", "percent", "Time in which any kernel ran."),
        ("Tensor cores active", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "percentunit", "Share of cycles."),
        ("GPU power", "DCGM_FI_DEV_POWER_USAGE", "watt", "A fall at full utilisation is throttling."),
        ("GPU temperature", "DCGM_FI_DEV_GPU_TEMP", "celsius", "Of the die."),
    ):
        made.lines(title, [(f"{metric} {of_run}", "{{pod}} GPU {{gpu}}")], help_text, unit=unit, width=6)
    made.lines(
        "GPU memory", [(f"DCGM_FI_DEV_FB_USED {of_run} * 1048576", "{{pod}} GPU {{gpu}}"),
                       (f"max by (pod) (giblet_train_gpu_memory_bytes{{{ONE}}})", "{{pod}} peak of local rank 0")],
        "In use, and the peak that PyTorch counted.", unit="bytes", smallest=0, width=12,
    )  # fmt: skip
    made.lines(
        "XID errors", [(f"DCGM_FI_DEV_XID_ERRORS {of_run}", "{{pod}} GPU {{gpu}}")],
        "The number of the last error; 0 is none.", smallest=0, width=12,
        steps=((None, BLUE), (1, RED)),
    )  # fmt: skip
