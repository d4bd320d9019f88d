"""What leaves the platform: guarded and signed HTTP, and mail."""
