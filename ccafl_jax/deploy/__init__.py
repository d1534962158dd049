"""Models that leave the house, and come back: run folders, exports, embedding of images."""
