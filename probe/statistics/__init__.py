"""Metrics, intervals, comparisons, calibration and agreement. Arrays in, arrays out; knows of no study."""
