"""References to pixels: fetched, decoded and batched, in workers."""
