"""Your own csv and model in Python: exits, recording, policy and evaluation in one run.

python examples/own_task.py reviews.csv text label sentence-transformers/all-MiniLM-L6-v2 runs/own
"""

import sys
from pathlib import Path

from cee_gym.agents import PolicyImprovement
from cee_gym.tasks import own_task
from cee_gym.training.config import RecordConfig
from cee_gym.training.setup import Setup
from cee_gym.training.trainer import ConsistentEETrainer

data, text, label, backbone, output = sys.argv[1:]
task = own_task(data, text=text, label=label)
print("classes:", ", ".join(task.labels))
setup = Setup.load(task, backbone, data, RecordConfig(recipe="probe"))
trainer = ConsistentEETrainer(PolicyImprovement(), Path(output), setup=setup)
result = trainer.train()
own = result["points"]["own"]["measured"]["dev"]
full = result["full_depth"]
print(f"full depth: accuracy {full['accuracy']:.3f}")
print(f"early exit: accuracy {own['accuracy']:.3f}, {own['saved_layers']:.0%} of the layers saved")
