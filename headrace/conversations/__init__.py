"""Conversations: lists of items that clients write, and that responses read before they run and add to at their end."""
