"""Studies: tasks, agents, rewards, trainings and seeds from one file, in one table."""
