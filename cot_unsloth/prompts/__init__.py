"""What the model reads: the chat template, token labels and the prompts of the arms."""
