"""Classify with a trained run, at several speeds.

python examples/use_pipeline.py runs/own
"""

import sys

from cee_gym.inference import EarlyExitPipeline

TEXTS = ["a good film", "it never gets going", "not bad at all"]

for speed in ({}, {"saved_layers": 0.5}, {"points_lost": 1.0}):
    pipeline = EarlyExitPipeline.from_pretrained(sys.argv[1], **speed)
    print(pipeline)
    for text, answer in zip(TEXTS, pipeline(TEXTS), strict=True):
        print(f"  layer {answer['exit_layer']}: {answer['label']} ({answer['score']:.2f})  {text}")
