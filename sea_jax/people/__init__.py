"""Labels by people: the page on which they answer, and people as the oracle."""
