"""Which parameters train, and what a task changed in them."""
