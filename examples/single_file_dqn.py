"""DQN in a single file, in the manner of CleanRL, on the vector environment; writes a submission.

python examples/single_file_dqn.py
cee-gym leaderboard --agents confidence --seeds 0 --submissions dqn.npz
"""

import gymnasium as gym
import numpy as np
import torch
from torch import nn

import cee_gym  # registers the environments
from cee_gym.agents.presets import OBSERVE
from cee_gym.leaderboard import ENTRIES, write_submission

ID = "EarlyExit-BERT-SST-2"
NUM_ENVS, STEPS, BUFFER, BATCH = 128, 1_500, 100_000, 512
LEARNING_RATE, TARGET_EVERY = 1e-3, 100

torch.manual_seed(0)
rng = np.random.default_rng(0)
envs = gym.make_vec(ID, num_envs=NUM_ENVS, observe=OBSERVE, alpha=ENTRIES[ID])
width = envs.single_observation_space.shape[0]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 2))


q, target = network(), network()
target.load_state_dict(q.state_dict())
optimizer = torch.optim.Adam(q.parameters(), lr=LEARNING_RATE)
seen, following = (np.zeros((BUFFER, width), dtype=np.float32) for _ in range(2))
actions, rewards, ends = (np.zeros(BUFFER, dtype=np.float32) for _ in range(3))

observations, _ = envs.reset(seed=0)
earned = []
for step in range(STEPS):
    greedy = q(torch.as_tensor(observations)).argmax(dim=1).numpy()
    explore = rng.random(NUM_ENVS) < max(0.05, 1 - step / (STEPS / 2))
    action = np.where(explore, rng.integers(2, size=NUM_ENVS), greedy)
    after, reward, ended, _, _ = envs.step(action)
    # Where an episode has ended `after` is the first state of the next one, which does not count.
    place = np.arange(step * NUM_ENVS, (step + 1) * NUM_ENVS) % BUFFER
    seen[place], following[place] = observations, after
    actions[place], rewards[place], ends[place] = action, reward, ended
    earned.append(reward.sum() / max(1, ended.sum()))
    observations = after
    if step >= 10:
        rows = rng.integers(min((step + 1) * NUM_ENVS, BUFFER), size=BATCH)
        with torch.no_grad():
            best = target(torch.as_tensor(following[rows])).max(dim=1).values
            # Nothing is discounted.
            wanted = torch.as_tensor(rewards[rows]) + best * (1 - torch.as_tensor(ends[rows]))
        values = q(torch.as_tensor(seen[rows]))
        chosen = values.gather(1, torch.as_tensor(actions[rows]).long()[:, None]).squeeze(1)
        loss = nn.functional.smooth_l1_loss(chosen, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if step % TARGET_EVERY == 0:
        target.load_state_dict(q.state_dict())
    if (step + 1) % 500 == 0:
        print(f"step {step + 1}: mean return {np.mean(earned[-100:]):.3f}")

dev = gym.make(ID, split="dev", observe=OBSERVE, alpha=ENTRIES[ID]).unwrapped.problem
with torch.no_grad():
    leave = q(torch.as_tensor(np.array(dev.observe()))).argmax(dim=-1)
write_submission("dqn.npz", {ID: leave.double().numpy()})
