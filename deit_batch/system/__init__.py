"""What the machine offers, and nothing that is particular to images or models."""
