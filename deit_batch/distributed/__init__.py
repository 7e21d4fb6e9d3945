"""`--engine ray`: blocks of the input are scored on the machines of a cluster, each by what scores them here.

cluster.py   connecting, what an actor has of its machine, and what Ray says when something went wrong
actor.py     what runs on the machines: a BlockScorer, and its model and workers, for as long as the run lasts
crew.py      the actors of a run, which come and go: work is handed out, and again when one has died
work.py      what is handed out: a block to be scored, an image to be tried alone, a part to be converted
engine.py    all of it, as block_runner.py wants it
"""

from deit_batch.system.extras import needing

with needing("ray"):
    import ray  # noqa: F401 - missing, it is missed here, and not in the middle of the modules that use it
