"""The main job, shown in the terminal: ``make demo``.

Every figure is measured while it runs, and a scene that comes out otherwise than
expected ends the demo with status 1.
"""
