"""What a batch deployment calls."""

from deit_batch.azureml.batch import init, run

__all__ = ["init", "run"]
