"""Embeddings in the layouts of other tools, one format a file; `write.export` writes them."""
