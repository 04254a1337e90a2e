"""The results of a probe study: made from scores, merged, written and read."""
