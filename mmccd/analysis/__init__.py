"""Analysis of networks and runs: attention maps, class activation maps, complexity, seeds, reports, environment."""
