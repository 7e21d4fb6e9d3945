"""Azure ML's deployments: `batch` and `online` each have the `init()` and `run()` that the service calls.

A deployment's scoring script is one line: `from deit_batch.azureml.batch import init, run`. The service calls these
without arguments that could carry a state, so each module keeps one.
"""
