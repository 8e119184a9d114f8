"""The delta bank: what each task trained, stored, routed, applied per sample."""
