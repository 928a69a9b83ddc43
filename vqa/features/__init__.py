"""What a frozen vision tower makes of an image, kept on disk."""
