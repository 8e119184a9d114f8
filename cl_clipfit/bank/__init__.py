"""The delta bank: the trained parameters of each task, stored, routed, applied per sample."""
