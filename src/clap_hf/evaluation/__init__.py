"""Evaluation: tasks with their metrics, and the runner."""
