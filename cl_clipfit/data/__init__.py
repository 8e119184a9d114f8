"""In-memory images, class orders, and Avalanche streams."""
