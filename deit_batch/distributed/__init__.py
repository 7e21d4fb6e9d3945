"""`deit-batch score --engine ray`: the records that the local engine would make, made on the machines of a cluster.

cluster.py   connecting, and how cores and GPUs are shared out
stages.py    what runs on the machines: reading, decoding, scoring
run.py       the driver, from the options to a folder that is whole
"""

from deit_batch.system.extras import needing

with needing("ray"):
    import ray.data  # noqa: F401 - missing, it is missed here, and not in the middle of the modules that use it
