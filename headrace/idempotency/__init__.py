"""Requests that are sent again and make nothing twice."""
