"""What a run tells: running means, the progress bar, the console, writers and reports."""
