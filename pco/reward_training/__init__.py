"""Training a reward model on preference pairs: Bradley-Terry, in three stages (docs/rewards.md)."""
