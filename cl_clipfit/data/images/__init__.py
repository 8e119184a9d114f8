"""Image files: decoded, read lazily, held in memory."""
