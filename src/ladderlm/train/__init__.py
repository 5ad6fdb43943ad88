"""Training: one loop, its optimisers, and the three ways to use them (pretrain, finetune, align)."""
