"""What the embedded drivers share: a SQLite file that several processes write, and how they wake each other."""
