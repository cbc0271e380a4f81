"""Making the embedded checkpoint: averaging weights, and exporting a run with its records and card."""
