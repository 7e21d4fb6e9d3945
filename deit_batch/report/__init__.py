"""Pages for people: what a run found (report), what changed between two (compare), one image (plot)."""
