"""The providers' own batch APIs: lines that may wait a day are handed to them, at half the price.

`apis` names them by wire format. What stands for a provider there is protocol alone: who is handed what, and when, is
not decided here.
"""
