"""All runs beside each other: which needs a person."""

from __future__ import annotations

from dashboards.parts import BLUE, GREEN, RED, YELLOW, Board

SOME = 'namespace=~"$namespace",run=~"$run"'
BY = "by (namespace, run)"


def board() -> Board:
    """The Fleet dashboard."""
    made = Board("giblet-fleet", "giblet / Fleet", "All runs beside each other: which needs a person.", all_runs=True)
    summary(made)
    runs(made)
    over_time(made)
    return made


def summary(made: Board) -> None:
    """What there is, in numbers."""
    made.row("Now")
    made.number(
        "Runs that train",
        f"count(time() - max {BY} (giblet_train_step_timestamp_seconds{{{SOME}}}) < 900)",
        "With a step in the last quarter of an hour.", decimals=0,
    )  # fmt: skip
    made.number(
        "Ranks that train", f"sum(max {BY} (giblet_train_world_size{{{SOME}}}))", "GPUs in use, one a rank.",
        decimals=0,
    )  # fmt: skip
    made.number(
        "Mean goodput", f"avg(giblet:goodput:ratio1h{{{SOME}}})", "Mean over runs.", unit="percentunit", decimals=0,
        steps=((None, RED), (0.5, YELLOW), (0.8, GREEN)),
    )  # fmt: skip
    made.number(
        "UNSAFE verdicts", f"count(min {BY} (giblet_verify_verdict{{{SOME}}}) == 0) or vector(0)",
        "Runs whose newest verification failed.", decimals=0, steps=((None, GREEN), (1, RED)),
    )  # fmt: skip
    made.number(
        "Restarts in a day",
        f"sum(giblet:restarts:max{{{SOME}}} - min_over_time(giblet:restarts:max{{{SOME}}}[1d]))",
        "Of all runs.", decimals=0, steps=((None, GREEN), (5, YELLOW), (20, RED)),
    )  # fmt: skip
    made.number(
        "Alerts firing", f'count(ALERTS{{{SOME},alertstate="firing"}}) or vector(0)', "See the table below.",
        decimals=0, steps=((None, GREEN), (1, RED)),
    )  # fmt: skip


def runs(made: Board) -> None:
    """One row a run."""
    made.rows_of(
        "Runs",
        {
            "step": (f"max {BY} (giblet_train_step{{{SOME}}})", "none"),
            "done": (
                f"max {BY} (giblet_train_step{{{SOME}}}) / max {BY} (giblet_train_planned_steps{{{SOME}}})",
                "percentunit",
            ),
            "samples/s": (f"giblet:train_samples:rate5m{{{SOME}}}", "none"),
            "loss": (f'max {BY} (giblet_train_loss{{{SOME},term="loss"}})', "none"),
            "validation r": (f"max {BY} (giblet_validation_bold_correlation{{{SOME}}})", "none"),
            "goodput": (f"giblet:goodput:ratio1h{{{SOME}}}", "percentunit"),
            "commit age": (
                f"time() - max {BY} (giblet_checkpoint_committed_timestamp_seconds{{{SOME}}})", "s",
            ),
            "verified step": (f"max {BY} (giblet_verify_verified_step{{{SOME}}})", "none"),
            "verdict": (f"min {BY} (giblet_verify_verdict{{{SOME}}})", "none"),
            "restarts": (f"giblet:restarts:max{{{SOME}}}", "none"),
            "steps lost": (f"max {BY} (giblet_steps_lost_total{{{SOME}}})", "none"),
            "ranks": (f"max {BY} (giblet_train_world_size{{{SOME}}})", "none"),
        },
        "Verdict: 2 SAFE, 1 SAFE WITH WARNINGS, 0 UNSAFE.",
        key=("namespace", "run"),
    )  # fmt: skip
    made.rows_of(
        "Alerts", {"state": (f"ALERTS{{{SOME}}}", "none")}, "Pending and firing.",
        key=("namespace", "run", "alertname", "severity", "alertstate"), height=6,
    )  # fmt: skip
    made.rows_of(
        "What trains", {"up": (f"max by (namespace, run, version, image, device, sharding) (giblet_run_info{{{SOME}}})",
                               "none")},
        "Version, image and device of each run.", key=("namespace", "run", "version", "image", "device", "sharding"),
        height=6,
    )  # fmt: skip


def over_time(made: Board) -> None:
    """Curves, one a run."""
    made.row("Over time")
    run = "{{namespace}}/{{run}}"
    made.lines("Samples a second", [(f"giblet:train_samples:rate5m{{{SOME}}}", run)], "By run.", smallest=0)
    made.lines(
        "Goodput", [(f"giblet:goodput:ratio1h{{{SOME}}}", run)], "Of the last hour, by run.", unit="percentunit",
        smallest=0,
    )  # fmt: skip
    made.lines("Ranks", [(f"max {BY} (giblet_train_world_size{{{SOME}}})", run)], "By run.", smallest=0, stacked=True)
    made.lines(
        "Age of the newest commit",
        [(f"time() - max {BY} (giblet_checkpoint_committed_timestamp_seconds{{{SOME}}})", run)], "By run.", unit="s",
        smallest=0,
    )  # fmt: skip
    made.lines("Validation correlation", [(f"max {BY} (giblet_validation_bold_correlation{{{SOME}}})", run)], "Mean r.")
    made.lines(
        "Restarts", [(f"giblet:restarts:max{{{SOME}}}", run)], "Since each run began.", smallest=0,
        steps=((None, BLUE), (10, RED)),
    )  # fmt: skip
