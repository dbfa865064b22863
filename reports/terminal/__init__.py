"""What a terminal of 80 columns shows, and what `--json` prints."""
