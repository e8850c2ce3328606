"""The way of a job through the API: accepted, waited for, cancelled."""
