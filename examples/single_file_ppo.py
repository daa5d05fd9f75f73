"""PPO in a single file, in the manner of CleanRL, on the vector environment; writes a submission.

python examples/single_file_ppo.py
cee-gym leaderboard --agents confidence --seeds 0 --submissions ppo.npz
"""

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Bernoulli

import cee_gym  # registers the environments
from cee_gym.agents.presets import OBSERVE
from cee_gym.leaderboard import ENTRIES, write_submission

ID = "EarlyExit-BERT-SST-2"
NUM_ENVS, NUM_STEPS, UPDATES, EPOCHS, MINIBATCHES = 256, 16, 40, 4, 8
CLIP, GAE_LAMBDA, LEARNING_RATE = 0.2, 0.95, 2e-3

torch.manual_seed(0)
envs = gym.make_vec(ID, num_envs=NUM_ENVS, observe=OBSERVE, alpha=ENTRIES[ID])
width = envs.single_observation_space.shape[0]
actor = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 1))
critic = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 1))
parameters = [*actor.parameters(), *critic.parameters()]
optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, eps=1e-5)

next_observation = torch.as_tensor(envs.reset(seed=0)[0])
for update in range(1, UPDATES + 1):
    optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - (update - 1) / UPDATES)
    observations = torch.zeros(NUM_STEPS, NUM_ENVS, width)
    actions, log_probs, rewards, ends, values = (torch.zeros(NUM_STEPS, NUM_ENVS) for _ in range(5))
    for step in range(NUM_STEPS):
        observations[step] = next_observation
        with torch.no_grad():
            policy = Bernoulli(logits=actor(next_observation).squeeze(-1))
            actions[step] = policy.sample()
            log_probs[step] = policy.log_prob(actions[step])
            values[step] = critic(next_observation).squeeze(-1)
        seen, reward, ended, _, _ = envs.step(actions[step].long().numpy())
        next_observation = torch.as_tensor(seen)
        rewards[step], ends[step] = torch.as_tensor(reward), torch.as_tensor(ended)
    # Nothing is discounted. After the end of an episode the next one begins in the same step.
    with torch.no_grad():
        after = critic(next_observation).squeeze(-1)
    advantages, running = torch.zeros_like(rewards), torch.zeros(NUM_ENVS)
    for step in reversed(range(NUM_STEPS)):
        going_on = 1 - ends[step]
        running = rewards[step] + after * going_on - values[step] + GAE_LAMBDA * going_on * running
        advantages[step], after = running, values[step]
    batch = [of.flatten(0, 1) for of in (observations, actions, log_probs, advantages)]
    targets = (advantages + values).flatten()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(targets)).chunk(MINIBATCHES):
            seen, done, before, advantage = (of[rows] for of in batch)
            policy = Bernoulli(logits=actor(seen).squeeze(-1))
            ratio = (policy.log_prob(done) - before).exp()
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            gain = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
            loss = -gain + 0.5 * (critic(seen).squeeze(-1) - targets[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
    if update % 10 == 0:
        print(f"update {update}: mean return {float(rewards.sum() / ends.sum()):.3f}")

dev = gym.make(ID, split="dev", observe=OBSERVE, alpha=ENTRIES[ID]).unwrapped.problem
with torch.no_grad():
    leave = actor(torch.as_tensor(np.array(dev.observe()))).squeeze(-1) > 0
write_submission("ppo.npz", {ID: leave.double().numpy()})
