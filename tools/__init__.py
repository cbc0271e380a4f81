"""Not installed: the corpus builder, teachers, and release helpers."""
