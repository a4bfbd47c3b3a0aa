"""The study: several methods, each trained with several seeds on one task, and what their differences show."""
