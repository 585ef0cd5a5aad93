"""Training: schedules (pure, no torch), data, objectives, SFT. `paft.training.sft` imports torch, this does not."""
