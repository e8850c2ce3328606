"""Agents: a persona and a configured model that answer by one name."""
