"""The report's sections on the movie rebuilt, and on how training went."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from giblet.evaluate import figures
from giblet.evaluate.predict import FramePair
from giblet.evaluate.report_html import figure, value_text
from giblet.evaluate.results import RunFacts


def movie_rebuilt(summary: dict[str, Any], pictures: Sequence[FramePair]) -> str:
    """How well pictures, sound and words come back from the bottleneck."""
    scores = summary["reconstruction"]
    rows = [
        ("Video", "R² against the training set's mean frame", scores["video_r2_against_training_mean"], "r3", "0"),
        (
            "Video", "peak signal-to-noise ratio, dB", scores["video_psnr_db"], "r1",
            f"{value_text(scores['video_psnr_db_of_training_mean'], 'r1')} (mean frame)",
        ),
        (
            "Audio", f"EnCodec codes named exactly, of {scores['audio_tokens']}", scores["audio_token_accuracy"],
            "percent1", f"{value_text(scores['audio_token_accuracy_of_unigram'], 'percent1')} (most frequent code)",
        ),
        ("Text", f"mean r of embedding features over {scores['text_trs']} TRs", scores["text_mean_r"], "r3", "0"),
    ]  # fmt: skip
    body = "".join(
        f"<tr><td>{kind}</td><td style='text-align:left'>{escape(what)}</td><td>{value_text(value, form)}</td>"
        f"<td>{guess}</td></tr>"
        for kind, what, value, form, guess in rows
    )
    page = (
        "<h2>The movie rebuilt</h2><div class=scroll><table><tr><th></th><th style='text-align:left'>measure</th>"
        f"<th>giblet</th><th>constant guess</th></tr>{body}</table></div>"
    )
    if not pictures:
        return page
    pairs = [(f"{pair.seconds:.0f} s", pair.true, pair.rebuilt) for pair in pictures]
    return page + figure(
        figures.film_frames(pairs),
        f"Held-out film above, rebuilt from the bottleneck below (run {pictures[0].presentation}, seconds of the run). "
        "A picture is the mean of its TR's frames, which is what the decoder is asked for.",
    )


def learning_curves(facts: RunFacts) -> str:
    """Losses over epochs, where the checkpoint has them."""
    picture = figures.learning_curves(facts.history)
    if picture is None:
        return ""
    epochs = max(len(curves.get("epoch", [])) for curves in facts.history.values())
    return "<h2>Learning curves</h2>" + figure(
        picture,
        f"Losses over {epochs} epochs, each relative to what a constant guess gets (1, grey line): the training set's "
        "mean, or its code frequencies for audio. The weighted sum is what training minimises.",
    )
