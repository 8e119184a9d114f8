"""`CLIPStrategy`, its training loop, parameter selection, losses, optimiser, resuming."""
