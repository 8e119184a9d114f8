"""`CLIPStrategy`, its loop, what trains, losses, optimiser, resuming."""
