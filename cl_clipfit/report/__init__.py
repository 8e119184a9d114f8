"""Output for the user: progress, tables and figures."""
