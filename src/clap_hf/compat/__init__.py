"""Interfaces of other packages on this package's models."""
