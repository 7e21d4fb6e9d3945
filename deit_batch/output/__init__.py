"""Records to files, and back: atomic, resumable, in any format."""
