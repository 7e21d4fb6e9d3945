"""How good predictions are: labels and predictions to metrics, a report, pictures. Needs the extra `eval`."""
