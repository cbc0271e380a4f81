"""Starts the Hub of a test session and sends the libraries there: to be imported before any of them."""

import atexit
import os

from . import LoopbackHub

HUB = LoopbackHub().start()
atexit.register(HUB.stop)
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.pop(_name, None)
os.environ.update(HUB.environment)
