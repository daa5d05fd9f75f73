"""A policy gradient on the vector environment, in one file: nothing but Gymnasium and torch.

The environments reset in the same step, so that every row of a batch is one decision. An episode
pays only at its end, so each decision of it is credited with that one reward.
"""

import gymnasium as gym
import numpy as np
import torch

import cee_gym  # registers the environments
from cee_gym.agents.presets import OBSERVE

NUM_ENVS, UPDATES = 512, 150

envs = gym.make_vec("EarlyExit-BERT-SST-2", num_envs=NUM_ENVS, observe=OBSERVE)
layers = envs.unwrapped.problem.num_layers
torch.manual_seed(0)
network = torch.nn.Linear(envs.single_observation_space.shape[0], 1)
optimizer = torch.optim.Adam(network.parameters(), lr=0.03)

observations, _ = envs.reset(seed=0)
for update in range(1, UPDATES + 1):
    batch = []
    for _ in range(2 * layers):
        logit = network(torch.as_tensor(observations)).squeeze(-1)
        action = torch.bernoulli(torch.sigmoid(logit.detach()))
        observations, reward, terminated, _, _ = envs.step(action.long().numpy())
        batch.append((logit, action, reward, terminated))
    logits, actions, rewards, ends = zip(*batch, strict=True)
    # The reward of an episode goes back to its decisions; what has not ended counts for nothing.
    credit, known = np.zeros(NUM_ENVS), np.zeros(NUM_ENVS, dtype=bool)
    credits, counts = [], []
    for reward, ended in zip(rewards[::-1], ends[::-1], strict=True):
        credit, known = np.where(ended, reward, credit), known | ended
        credits.append(credit)
        counts.append(known)
    advantage = torch.as_tensor(np.array(credits[::-1]), dtype=torch.float32)
    weight = torch.as_tensor(np.array(counts[::-1]), dtype=torch.float32)
    advantage = (advantage - (advantage * weight).sum() / weight.sum()) * weight
    likelihood = torch.distributions.Bernoulli(logits=torch.stack(logits))
    loss = -(advantage * likelihood.log_prob(torch.stack(actions))).sum() / weight.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if update % 30 == 0:
        mean = np.sum(np.array(rewards) * np.array(ends)) / np.sum(ends)
        print(f"update {update}: mean return {mean:.3f}")
