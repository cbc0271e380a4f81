"""Builds the paper's training sets from copies as their owners distribute them; not installed with the package."""
