"""What a network computes, read off its module, and how it is called."""
