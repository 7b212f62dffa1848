"""Applications of the engine that answer a question with a table: perplexity, multiple choice, the seed ledger."""
