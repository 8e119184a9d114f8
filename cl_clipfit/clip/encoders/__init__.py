"""Fast image and text towers."""
