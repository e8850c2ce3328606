"""Clients of the providers' own batch APIs, which run lines within a day at half the price.

`apis` lists them by wire format. They speak the protocols alone: `scheduler.batches.native` decides which lines go to a
provider, and when.
"""
