"""The sections of a report: each function gives the content of one, [] where it has none."""
