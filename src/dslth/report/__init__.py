"""Pictures of runs, from their folders alone: by which figures, what is drawn, and the page that shows it."""
