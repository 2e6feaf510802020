"""Labels by people: the questions that a run asks, the page on which people answer, and their agreement."""
