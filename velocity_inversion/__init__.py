"""Shot gathers to velocity with uncertainty (to come)."""
