"""Two tiny chat models whose weights are committed, so that the toolkit runs without a download. Not for real work."""
