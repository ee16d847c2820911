"""The main job, shown in the terminal: ``make demo``.

The demo measures every figure while it runs. An unexpected result ends the demo with status 1.
"""
