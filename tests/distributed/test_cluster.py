"""What the actors of a cluster have of its machines."""

from __future__ import annotations

from typing import Any

import pytest

from deit_batch.distributed.cluster import Where, share_out


def node(**resources: float) -> dict[str, Any]:
    return {"NodeID": "n", "NodeManagerHostname": "host", "Resources": resources}


@pytest.mark.parametrize(
    ("resources", "where", "on_gpus", "shares"),
    [
        ({"CPU": 4}, Where(), False, [(4, 0)]),
        ({"CPU": 19}, Where(), False, [(7, 0), (6, 0), (6, 0)]),
        ({"CPU": 19}, Where(actor_cores=4), False, [(4, 0)] * 4),
        ({"CPU": 3}, Where(actor_cores=4), False, []),
        ({}, Where(), False, []),
        ({"CPU": 16, "GPU": 2}, Where(), False, [(8, 0), (8, 0)]),
        ({"CPU": 17, "GPU": 2}, Where(), True, [(8, 1), (8, 1)]),
        ({"CPU": 17, "GPU": 2}, Where(actors_per_gpu=2), True, [(4, 0.5)] * 4),
        ({"GPU": 1}, Where(), True, [(0, 1)]),
        ({"CPU": 8}, Where(), True, []),
    ],
)
def test_a_machine_is_shared_out_to_actors(
    resources: dict[str, float], where: Where, on_gpus: bool, shares: list[tuple[int, float]]
) -> None:
    assert [(share.cores, share.gpus) for share in share_out(node(**resources), where, on_gpus=on_gpus)] == shares
