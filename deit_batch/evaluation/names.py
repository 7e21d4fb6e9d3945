"""What metrics, and the files of an evaluation, are called.

Names of metrics are those of scikit-learn's scorers (`sklearn.metrics.get_scorer_names()`), with `_micro`, `_macro`,
`_weighted`, `_binary` or (over images) `_samples` for how they are averaged, and without the `neg_` of `neg_log_loss`.
"""

AVERAGES = ("micro", "macro", "weighted")
CARD_NAMES = {
    "matthews_correlation": "matthews_corrcoef",
    "norm_macro_recall": "balanced_accuracy_adjusted",
    **{f"AUC_{average}": f"roc_auc_{average}" for average in (*AVERAGES, "binary")},
    **{
        f"{name}_score_{average}": f"{name}_{average}"
        for name in ("average_precision", "f1", "precision", "recall")
        for average in (*AVERAGES, "binary")
    },
    "average_precision": "average_precision_macro",
    "iou": "jaccard_samples",
    **{f"iou_{average}": f"jaccard_{average}" for average in AVERAGES},
}
"""What the card's evaluation sample, or scikit-learn's scorer, calls a metric that has another name here."""

LOWER_IS_BETTER = frozenset(("log_loss", "expected_calibration_error"))
HIGHER_IS_BETTER = frozenset(
    ("accuracy", "accuracy_of_all_inputs", "top_5_accuracy", "balanced_accuracy", "weighted_accuracy")
) | frozenset(CARD_NAMES.values())
BELOW_ZERO = frozenset(("matthews_corrcoef", "balanced_accuracy_adjusted"))
"""Those of them that may be so, down to -1; all others reach from 0 to 1."""
NAMES = LOWER_IS_BETTER | HIGHER_IS_BETTER
"""Every metric that there can be."""
COMPARED = LOWER_IS_BETTER | {
    *("accuracy", "top_5_accuracy", "balanced_accuracy", "f1_macro", "f1_micro", "jaccard_macro"),
}
"""Those that noise.py compares with a baseline, of one label an image or several."""

METRICS, REPORT, PAGE = "metrics.json", "report.md", "report.html"
PREDICTIONS, PARTS = "predictions.jsonl", "predictions"
PLOTS = ("confusion_matrix.png", "reliability.png", "precision_recall.png", "mistakes.png")
