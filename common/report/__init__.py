"""Reading runs: pages, plots, galleries."""
