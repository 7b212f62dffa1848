"""Speculation: tokens are guessed cheaply, and one pass at the high level keeps those it would have written itself."""
