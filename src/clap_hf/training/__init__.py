"""Training: one Accelerate loop, its losses, augmentations and recipes."""
