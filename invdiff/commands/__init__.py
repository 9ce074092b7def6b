"""What the command line does besides running a task; each command returns data and text, and `invdiff.cli` prints."""
