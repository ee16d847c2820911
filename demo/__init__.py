"""The main job, shown in the terminal."""
