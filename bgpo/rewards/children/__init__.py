"""Scripts that graders start as processes of their own; nothing else lies here, for the folder is on their path."""
