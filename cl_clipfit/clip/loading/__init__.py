"""Models by name: open_clip's, files, folders, the bundled one."""
