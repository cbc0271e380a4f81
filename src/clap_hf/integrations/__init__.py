"""CLAP in other projects' harnesses."""
