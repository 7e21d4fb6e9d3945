"""A checkpoint's name to a callable: pixels to scores, or features."""
