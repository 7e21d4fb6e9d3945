"""The endpoint: images of many clients over HTTP, scored together. Needs the extra serve.

server.py        the process: its socket, its connections, and its end
application.py   the routes, and the shape of the answers
endpoint.py      a request: what it must be, and how much of them there may be
scorer.py        one image → its predictions: fetched, decoded (decoders.py), scored with those of others (batcher.py)
metrics.py       what the server tells of itself: counters, and a line for each request
"""

BATCH_WINDOW = 0.005
"""Seconds that an image waits for others to fill its batch, unless it is told."""
