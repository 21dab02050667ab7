"""Forty ways in which stores lost, revived or invented data, by their numbers."""
