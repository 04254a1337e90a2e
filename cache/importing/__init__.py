"""Embeddings in files, of patchbank's exports and of other programs, one format a file."""
