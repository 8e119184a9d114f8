"""What a user sees: progress, tables and figures."""
