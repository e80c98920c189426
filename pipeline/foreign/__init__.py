"""Slices from elsewhere: what is known of them, what the served model answers, and refitted numbers for a site."""
