"""Half precision without surprises: what values can become, and exact factors that keep them in range."""
