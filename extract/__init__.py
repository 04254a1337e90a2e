"""Encoders and the engine that runs them: data sets in, cached embeddings out."""
