"""Can these weights be trusted: verdicts, what was counted, and what nobody has read back yet."""

from __future__ import annotations

from dashboards.parts import GREEN, RED, YELLOW, Board, Marker

SOME = 'namespace=~"$namespace",run=~"$run"'
BY = "by (namespace, run)"
VERDICTS = {"0": ("UNSAFE", RED), "1": ("WARNINGS", YELLOW), "2": ("SAFE", GREEN)}


def board() -> Board:
    """The Verification dashboard."""
    made = Board(
        "giblet-verification", "giblet / Verification",
        "Can these weights be trusted: verdicts, what was counted, and what nobody has read back yet.", all_runs=True,
    )  # fmt: skip
    made.mark(
        Marker(
            "verified", f"max {BY} (giblet_verify_verified_timestamp_seconds{{{SOME}}} > 0) * 1000", "green", "{{run}}"
        )
    )
    verdict(made)
    counts(made)
    work(made)
    return made


def verdict(made: Board) -> None:
    """The verdict, and how far verification is behind."""
    made.row("What was found")
    made.number(
        "Worst verdict", f"min(giblet_verify_verdict{{{SOME}}})", "Of the newest verification of each run chosen.",
        names=VERDICTS, width=6,
    )  # fmt: skip
    made.number("Judged step", f"max(giblet_verify_judged_step{{{SOME}}})", "Newest, whatever the verdict.", width=6)
    made.number("Verified step", f"max(giblet_verify_verified_step{{{SOME}}})", "Newest that was accepted.", width=6)
    made.number(
        "Age of the newest verified", f"time() - max(giblet_verify_verified_timestamp_seconds{{{SOME}}} > 0)",
        "Since a verdict accepted a checkpoint.", unit="s", width=6,
    )  # fmt: skip
    made.rows_of(
        "Runs",
        {
            "verdict": (f"min {BY} (giblet_verify_verdict{{{SOME}}})", "none"),
            "judged step": (f"max {BY} (giblet_verify_judged_step{{{SOME}}})", "none"),
            "verified step": (f"max {BY} (giblet_verify_verified_step{{{SOME}}})", "none"),
            "committed step": (f"max {BY} (giblet_checkpoint_committed_step{{{SOME}}})", "none"),
            "NaN": (f"max {BY} (giblet_verify_nan_elements{{{SOME}}})", "none"),
            "Inf": (f"max {BY} (giblet_verify_inf_elements{{{SOME}}})", "none"),
            "over limit": (f"max {BY} (giblet_verify_over_limit_elements{{{SOME}}})", "none"),
            "zero tensors": (f"max {BY} (giblet_verify_zero_tensors{{{SOME}}})", "none"),
            "job active": (f"max {BY} (giblet_job_active{{{SOME}}})", "none"),
        },
        "Verdict: 2 SAFE, 1 SAFE WITH WARNINGS, 0 UNSAFE.", key=("namespace", "run"), height=8,
    )  # fmt: skip


def counts(made: Board) -> None:
    """What the newest verification counted."""
    made.row("What was counted in the weights")
    run = "{{run}}"
    made.lines("Verdict", [(f"min {BY} (giblet_verify_verdict{{{SOME}}})", run)], "2 SAFE, 1 warnings, 0 UNSAFE.",
               smallest=0)  # fmt: skip
    made.lines(
        "Elements that should not be",
        [(f"max {BY} (giblet_verify_nan_elements{{{SOME}}})", "NaN {{run}}"),
         (f"max {BY} (giblet_verify_inf_elements{{{SOME}}})", "Inf {{run}}"),
         (f"max {BY} (giblet_verify_over_limit_elements{{{SOME}}})", "over limit {{run}}")],
        "In the checkpoint judged last.", smallest=0,
    )  # fmt: skip
    made.lines(
        "All-zero tensors", [(f"max {BY} (giblet_verify_zero_tensors{{{SOME}}})", run)],
        "Some are so by architecture; the report says which.", smallest=0,
    )  # fmt: skip
    made.lines(
        "Tensors and elements", [(f"max {BY} (giblet_verify_tensors{{{SOME}}})", "tensors {{run}}"),
                                 (f"max {BY} (giblet_verify_elements{{{SOME}}})", "elements {{run}}")],
        "In the checkpoint judged last. Should not change within a run.", log=True,
    )  # fmt: skip
    made.lines(
        "Steps committed and not accepted",
        [(f"""max {BY} (giblet_checkpoint_committed_step{{{SOME}}})
              - max {BY} (giblet_verify_verified_step{{{SOME}}})""", run)],
        "How far the newest verified checkpoint is behind the newest commit.", smallest=0,
    )  # fmt: skip


def work(made: Board) -> None:
    """What verification does, and what it could not do."""
    made.row("The verifier")
    made.lines(
        "Judgements", [(f"sum by (run, verdict) (giblet_verify_judgements_total{{{SOME}}})", "{{verdict}} {{run}}")],
        "Checkpoints judged by the processes that run now.", smallest=0,
    )  # fmt: skip
    made.lines(
        "Could not judge", [(f"sum by (run, cause) (giblet_verify_errors_total{{{SOME}}})", "{{cause}} {{run}}")],
        "That is no verdict.", smallest=0,
    )  # fmt: skip
    made.lines("Seconds", [(f"max {BY} (giblet_verify_seconds{{{SOME}}})", "{{run}}")], "Of the newest verification.",
               unit="s", smallest=0)  # fmt: skip
    made.lines(
        "Bytes read back", [(f"sum by (run) (giblet_verify_bytes_total{{{SOME}}})", "{{run}}")],
        "By the processes that run now.", unit="bytes", smallest=0,
    )  # fmt: skip
