"""Batched L2 logistic regressions: every training set at every strength at once. Arrays in, arrays out."""
