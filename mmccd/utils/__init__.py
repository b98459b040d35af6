"""Helpers that no other room of the package owns."""
