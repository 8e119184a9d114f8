"""The command line: options and help texts. Does not import PyTorch."""
