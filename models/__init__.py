"""What is learned: one file per architecture, ending in its recipe."""
