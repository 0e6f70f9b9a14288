"""Humpback Whale Identification, and any re-identification like it."""
