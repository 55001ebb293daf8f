"""Goal-conditioned reinforcement learning on Stable-Baselines3: ReenGAGE and Multi-ReenGAGE critic losses."""
