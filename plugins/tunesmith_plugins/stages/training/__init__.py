"""Parts of the fine-tuning stage: its losses, its memory, its report, and its process if it has one of its own."""
