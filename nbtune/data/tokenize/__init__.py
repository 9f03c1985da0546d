"""Text as token ids, and characters' masks as tokens' masks."""
