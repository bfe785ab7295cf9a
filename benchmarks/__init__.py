"""What it costs: each script compares two things in one run and prints one JSON object last."""
