"""What an online deployment calls."""

from deit_batch.azureml.online import init, run

__all__ = ["init", "run"]
