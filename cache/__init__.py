"""Embedding stores: identity, blocks, commit log, Zarr, HDF5, verify, export."""
