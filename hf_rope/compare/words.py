"""What metrics are called, and scores as text, in reports and figures."""

from typing import Any

DIGITS = 3
NAMES = {
    "loss": "loss (nats)",
    "bits_per_byte": "bits per byte",
    "f1": "F1",
    "spearman": "Spearman's correlation",
    "mse": "mean squared error",
    "translation_invariance": "translation invariance",
}


def named(metric: str) -> str:
    """What a metric is called."""
    return NAMES.get(metric, metric)


def score(found: dict[str, Any], evaluation: str, metric: str, digits: int = DIGITS) -> str:
    """The mean score of a scheme over its seeds, or why there is none; nothing where it is not measured.

    "undefined" is what a model that has not diverged has no number of, as the correlation of answers all alike.
    """
    scores = found["evaluations"].get(evaluation)
    if scores is None:
        return "missing"
    if "refused" in scores:
        return "refuses"
    if metric not in scores:
        return ""
    mean = scores[metric]["mean"]
    if mean is None:
        return "diverged" if scores["loss"]["mean"] is None else "undefined"
    return f"{mean:.{digits}f}"


def score_with_range(found: dict[str, Any], evaluation: str, metric: str) -> str:
    """As `score`, with the range where there are several seeds."""
    text, row = score(found, evaluation, metric), found["evaluations"].get(evaluation, {}).get(metric)
    if row is None or len(row["values"]) == 1:
        return text
    if row["mean"] is None:
        return f"{text} in {row['values'].count(None)} of {len(row['values'])}"
    return f"{text} ({row['lowest']:.{DIGITS}f} to {row['highest']:.{DIGITS}f})"
