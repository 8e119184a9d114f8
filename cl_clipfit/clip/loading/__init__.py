"""Load models by name: from open_clip, a file or a folder, or the bundled one."""
