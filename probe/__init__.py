"""Linear probes on cached embeddings: sweeps, metrics, intervals, reports. CPU only; imports no torch."""
