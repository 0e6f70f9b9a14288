"""Google Landmark Recognition and Retrieval."""
