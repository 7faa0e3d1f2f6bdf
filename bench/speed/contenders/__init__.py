"""One module per contender; each function takes a `Work` and a `Session` and returns facts about what it did."""
