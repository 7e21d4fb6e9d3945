"""Compares predictions with the names of the class folders that the images lie in: count_right.py preds.jsonl"""

from __future__ import annotations

import json
import sys
from pathlib import Path

records = [json.loads(line) for line in Path(sys.argv[1]).read_bytes().splitlines()]
right = [
    record["predictions"] and record["predictions"][0]["label"].replace(" ", "-") == Path(record["image"]).parent.name
    for record in records
]
print(f"{sys.argv[1]}: {sum(map(bool, right))} of {len(right)} labels are right")
sys.exit(0 if sum(map(bool, right)) > 0.75 * len(right) else 1)
