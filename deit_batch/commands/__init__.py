"""The commands, one a file: options, help and exit status. What they do is in the rooms that they call."""
