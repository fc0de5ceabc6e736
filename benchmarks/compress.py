"""How much faster and smaller does `argosy compress` make a text model, and how many points does it lose?

A MiniLM with two tasks is fine-tuned on real texts: the teacher. It is then quantised, pruned, and distilled to a
student; combined are the student and the fastest backend at the same accuracy. All variants answer the same held-out
texts in turns, each loaded by the serving code in a process of its own.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import torch

from benchmarks import convention
from workers.device import devices
from workers.device.device_process import ModelToLoad
from workers.models.backends.choice import REFERENCE, Backend
from workers.training import data, head_features
from workers.training.compressing import answered_rows
from workers.training.compressing.compress_recipe import CompressRecipe, Distill, Export, Int8, Prune, Step
from workers.training.compressing.compression_run import ORIGINAL, Reports, Work
from workers.training.compressing.answered_rows import AnsweredRow
from workers.training.compressing.measured_variants import Figures, Measurement, Variant

#: The tasks, and their texts to learn from and to judge by.
TASKS = {"sentiment": (5000, 800), "topic": (1500, 400)}

#: The points that a combination may lose on any task.
MOST_LOST = 2.0

#: The teacher's backends beside torch in fp32; int8 is a step of its own.
BACKENDS = (Backend("torch", "bf16"), Backend("onnxruntime"), Backend("openvino"), Backend("openvino", "bf16"))
