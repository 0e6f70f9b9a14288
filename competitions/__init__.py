"""One thin folder per competition."""
