"""What is known of a run as pages for people: Markdown, and HTML files that need nothing else."""
