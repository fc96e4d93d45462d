"""What a run writes and reads: every write atomic, every file that is read checked."""
