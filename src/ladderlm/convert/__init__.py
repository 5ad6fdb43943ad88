"""Models made into other forms: quantised, merged, exported, verified."""
