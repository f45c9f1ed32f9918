"""Recovery of pruned models by short fine-tuning."""
