"""Parts of the fine-tuning stage: examples to rows, noise, packing, batches, the trainer, reports."""
