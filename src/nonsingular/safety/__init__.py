"""What a file may say, and how its text is shown."""
