"""Serve a loopback Hub by hand: `python -m hub_server --folder FOLDER --port 8970`."""

import argparse
import time
from pathlib import Path

from . import LoopbackHub

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--folder", type=Path, help="where repositories lie; a temporary one by default")
parser.add_argument("--port", type=int, default=0)
args = parser.parse_args()
hub = LoopbackHub(args.folder, args.port).start()
for name, value in {**hub.environment, "HF_TOKEN": hub.tokens["write"]}.items():
    print(f"export {name}={value}")
print("# Ctrl-C stops it.", flush=True)
try:
    while True:
        time.sleep(3600)
except KeyboardInterrupt:
    hub.stop()
