"""Inside the training of other libraries: Trainer, SFTTrainer, or a loop of one's own."""
