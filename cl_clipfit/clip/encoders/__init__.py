"""Fast encoders for the image and text towers of open_clip."""
