"""Recovery: what a pruned model is fine-tuned on, how, and what comes of it as a model, in a merger and as a draft.

Examples and text become samples, the dense model rewrites answers or is distilled from, low-rank additions or whole
weights are trained from a checkpoint where there is one, and zeros stay zeros. A short recovery before a measurement
(`evaluator.recovery.short`) is part of its protocol.
"""
