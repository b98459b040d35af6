"""The attention bench: a declared plan of trainings, its rows, and what they show and do not show."""
