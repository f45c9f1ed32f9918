"""Accuracy on tasks by the language model evaluation harness (lm-eval), run in process.

Its tasks, prompts, metrics and few-shot examples are the harness' own; ours are the model that answers, which shares
what questions have in common, the definitions of tasks over local files, and the cache of what was answered.
"""
