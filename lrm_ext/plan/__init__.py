"""Estimates the cost of a training in advance: parameters, memory, operations, hours, money."""
