"""What is done before a run: plans of the memory, arithmetic and traffic that it will need."""
