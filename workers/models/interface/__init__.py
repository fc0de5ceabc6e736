"""What a model's class is written against: `Model`, its options, its samples and its files."""
