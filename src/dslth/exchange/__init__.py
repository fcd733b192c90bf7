"""The exchange of masks: what peers send each other, and when."""
