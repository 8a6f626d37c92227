"""What the lab's training step costs, as ratios against rivals that run beside it: `python -m ouro_lab.bench`."""
