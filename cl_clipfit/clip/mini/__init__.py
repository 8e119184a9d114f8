"""The bundled mini CLIP and what it was pre-trained on."""
