"""The embedded checkpoint's training set: thinned, captioned weakly, and a validation split of sources held out."""

import csv

import datasets
import pytest
import typer
from onnx import save
from tools.release import training_set

from tools_graph import graph
from training.corpus import write_corpus
