"""What a run leaves for people: the summary and its table."""
