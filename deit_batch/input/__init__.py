"""What the user names, to references: lazily, in an order that is the same on every machine."""
