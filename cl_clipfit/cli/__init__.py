"""What a user types: options and help texts. Imports no PyTorch."""
